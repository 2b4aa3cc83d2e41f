import pytest

from mmgslora.datasets import ClassPartition, Protocol
from mmgslora.errors import ForgettingError

CLASSES = ('cat', 'dog', 'cow', 'hen', 'pig')


def test_partitions_of_a_sequence():
    protocol = Protocol(CLASSES, [['dog', 'cat'], ['pig']], missing=['hen'])
    first, second = protocol.partition(1), protocol.partition(2)
    assert first == ClassPartition(1, ('dog', 'cat'), ('cow', 'pig'), (), ('hen',), CLASSES)
    assert second == ClassPartition(2, ('pig',), ('cow',), ('cat', 'dog'), ('hen',), CLASSES)
    assert first.labels('forget') == [1, 0]
    assert second.labels('old') == [0, 1]


def test_partition_goes_through_the_message_hub():
    assert ClassPartition.current() is None
    partition = Protocol(CLASSES, [['dog']]).partition(1)
    partition.publish()
    assert ClassPartition.current() == partition


@pytest.mark.parametrize(
    ('tasks', 'missing', 'words'),
    [
        ([['catt']], [], ["'catt'", "did you mean 'cat'"]),
        ([['cat'], ['dog', 'cat']], [], ["'cat'", 'task 1', 'task 2']),
        ([['cat', 'cat']], [], ["'cat'", 'task 1 and again in task 1']),
        ([['cat'], []], [], ['Task 2', 'empty']),
        ([], [], ['no tasks']),
        ([['cat', 'dog', 'cow', 'hen', 'pig']], [], ['5 of 5', 'at least one']),
        ([['cat', 'dog', 'cow', 'hen']], ['pig'], ['none with training data']),
        ([['cat']], ['cat'], ["'cat'", 'missing']),
        ([['cat']], ['cta'], ["'cta'", 'missing', "'cat'"]),
    ],
)
def test_requests_that_cannot_be_served(tasks, missing, words):
    with pytest.raises(ForgettingError) as error:
        Protocol(CLASSES, tasks, missing)
    for word in words:
        assert word in str(error.value)


def test_task_out_of_range():
    with pytest.raises(ForgettingError, match='Task 2 does not exist'):
        Protocol(CLASSES, [['dog']]).partition(2)


def test_coco_protocol_is_the_seeded_shuffle(repo_root):
    import numpy as np
    from mmdet.datasets import CocoDataset
    from mmengine.config import Config

    tasks = Config.fromfile(repo_root / 'configs/_base_/protocols/coco_7x10.py').protocol['tasks']
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [i for i in range(1, 91) if i not in unused]
    shuffled = list(ids)
    np.random.seed(123)  # noqa: NPY002  the authors' generator
    np.random.shuffle(shuffled)  # noqa: NPY002
    classes = CocoDataset.METAINFO['classes']
    for number, task in enumerate(tasks):
        expected = shuffled[70 - 10 * number : 80 - 10 * number]
        assert [ids[classes.index(name)] for name in task] == expected
    assert len(tasks) == 7
