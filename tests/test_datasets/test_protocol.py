import pytest

from mmgslora.datasets import ClassPartition, Protocol
from mmgslora.datasets.protocol import category_ids_of
from mmgslora.errors import ForgettingError

CLASSES = ('cat', 'dog', 'cow', 'hen', 'pig')
IDS = dict(zip([1, 2, 4, 7, 9], CLASSES))
COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})


def test_partitions_of_a_sequence():
    protocol = Protocol(CLASSES, [['dog', 'cat'], ['pig']], missing=['hen'])
    first, second = protocol.partition(1), protocol.partition(2)
    assert first == ClassPartition(1, ('dog', 'cat'), ('cow', 'pig'), (), ('hen',), CLASSES)
    assert second == ClassPartition(2, ('pig',), ('cow',), ('cat', 'dog'), ('hen',), CLASSES)
    assert first.labels('forget') == [1, 0]
    assert second.labels('old') == [0, 1]


def test_what_was_forgotten_before_is_old_from_the_start():
    protocol = Protocol(CLASSES, [['dog'], ['pig']], forgotten=['hen'])
    assert protocol.partition(1).old == ('hen',)
    assert protocol.partition(1).retain == ('cat', 'cow', 'pig')
    assert protocol.partition(2).old == ('dog', 'hen')


@pytest.mark.parametrize('wish', [dict(tasks=[['hen']]), dict(tasks=[['dog']], missing=['hen'])])
def test_what_was_forgotten_before_cannot_be_asked_for(wish):
    with pytest.raises(ForgettingError, match="Class 'hen'.*forgotten it already .hen, pig."):
        Protocol(CLASSES, forgotten=['hen', 'pig'], **wish)


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


def test_tasks_come_from_the_end_of_the_order():
    order = ['hen', 'cow', 'pig', 'cat', 'dog']
    protocol = Protocol(CLASSES, order=order, sizes=[1, 2])
    assert protocol.tasks == (('dog',), ('pig', 'cat'))
    assert protocol.partition(2).retain == ('cow', 'hen')


def test_category_ids_stand_for_names():
    assert Protocol(CLASSES, [[7, 'cat']], missing=[4], category_ids=IDS).partition(
        1
    ) == ClassPartition(1, ('hen', 'cat'), ('dog', 'pig'), (), ('cow',), CLASSES)
    mixed = Protocol(CLASSES, order=['cat', 2, 4, 'hen', 9], sizes=[2], category_ids=IDS)
    assert mixed.tasks == (('hen', 'pig'),)


def test_a_number_where_classes_are_called_by_numbers():
    """YAML reads 0000045 as 37, and 45 is a place: nobody can know which was meant."""
    names = [f'{n:07}' for n in range(45, 145)]
    ids = dict(enumerate(names))
    assert Protocol(names, category_ids=ids, tasks=[['0000045']]).tasks == (('0000045',),)
    with pytest.raises(
        ForgettingError, match="45 in task 1 is a number, .*'0000045'; give the nam"
    ):
        Protocol(names, category_ids=ids, tasks=[[45]])


def test_tasks_come_before_file_before_order(tmp_path):
    file = tmp_path / 'protocol.json'
    file.write_text('{"tasks": [["pig"]]}')
    base = dict(order=list(CLASSES), sizes=[2])
    assert Protocol(CLASSES, [['cat']], file=file, **base).tasks == (('cat',),)
    assert Protocol(CLASSES, file=str(file), **base).tasks == (('pig',),)


@pytest.mark.parametrize(
    ('name', 'text', 'tasks', 'missing'),
    [
        ('a.yaml', 'tasks:\n  - [dog, 1]\n  - [9]\nmissing: [hen]', 'dog cat, pig', ('hen',)),
        ('a.yml', 'order: [9, cow, cat, dog, hen]\nsizes: [1, 1]', 'hen, dog', ()),
        ('a.json', '{"order": ["pig", 4, 1, 2, 7], "sizes": [2]}', 'dog hen', ()),
    ],
)
def test_protocol_files(tmp_path, monkeypatch, name, text, tasks, missing):
    (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    protocol = Protocol(CLASSES, file=name, category_ids=IDS)
    assert protocol.tasks == tuple(tuple(task.split()) for task in tasks.split(', '))
    assert protocol.missing == missing


def test_given_missing_classes_come_before_those_of_the_file(tmp_path):
    file = tmp_path / 'protocol.yaml'
    file.write_text('tasks: [[cat]]\nmissing: [hen]')
    assert Protocol(CLASSES, file=file, missing=['dog']).missing == ('dog',)


def test_example_file(repo_root):
    from mmdet.datasets import CocoDataset

    classes = CocoDataset.METAINFO['classes']
    file = repo_root / 'configs/_base_/protocols/example.yaml'
    protocol = Protocol(classes, file=file, category_ids=dict(zip(COCO_IDS, classes)))
    assert protocol.tasks == (('person',), ('traffic light', 'cat'))


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(tasks=[[3]]), ['Category id 3 in task 1', '2 (dog), 4 (cow)', '5 ids']),
        (dict(tasks=[['cat']], missing=[0]), ['Category id 0 in the missing classes']),
        (dict(tasks=[[1], ['cat']]), ["'cat'", 'task 1', 'again in task 2']),
        (dict(tasks=[[True]]), ['Class True', 'unknown']),
        (dict(tasks=[[1.0]]), ['Class 1.0', 'unknown']),
        (dict(tasks=[[1]], category_ids=None), ['id 1 in task 1', 'not in COCO format', 'cat']),
        (dict(tasks='cat'), ["'cat' is given for the tasks", "['cat']"]),
        (dict(tasks=['cat']), ["'cat' is given for task 1", "['cat']"]),
        (dict(tasks=[1]), ['1 is given for task 1']),
        (dict(), ['no tasks']),
        (dict(order=CLASSES), ['order but no sizes', 'sizes=[10, 10]']),
        (dict(sizes=[1]), ['sizes but no order']),
        (dict(order=[*CLASSES, 'dog'], sizes=[1]), ["'dog' is 2 times in the order"]),
        (dict(order=[*CLASSES, 2], sizes=[1]), ["'dog' is 2 times in the order"]),
        (dict(order=CLASSES[:4], sizes=[1]), ["'pig' is not in the order"]),
        (dict(order=['catt', *CLASSES[1:]], sizes=[1]), ["'catt' in the order", "'cat'"]),
        (dict(order=[3, *CLASSES[1:]], sizes=[1]), ['id 3 in the order']),
        (dict(order=CLASSES, sizes=[2, 3]), ['[2, 3]', '5 of 5', 'up to 4']),
        (dict(order=CLASSES, sizes=[7]), ['[7]', '7 of 5', 'up to 4']),
        (dict(order=CLASSES, sizes=[1, 0]), ['0 in sizes', '1 or more']),
        (dict(order=CLASSES, sizes=['1']), ["'1' in sizes"]),
        (dict(order=CLASSES, sizes=2), ['2 is given for sizes', '[2]']),
        (dict(order=CLASSES, sizes=[]), ['no tasks']),
        (dict(order=CLASSES, sizes=[4], missing=['cat']), ['none with training data']),
    ],
)
def test_settings_that_cannot_be_served(settings, words):
    with pytest.raises(ForgettingError) as error:
        Protocol(CLASSES, **{'category_ids': IDS, **settings})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('a.yaml', None, ['does not exist', 'relative path']),
        ('a.txt', 'tasks: [[cat]]', ['.yaml, .yml or .json']),
        ('a.yaml', 'tasks: [[cat]', ['cannot be read as YAML']),
        ('a.json', 'tasks: [[cat]]', ['cannot be read as JSON']),
        ('a.json', '\xff', ['cannot be read as JSON']),
        ('a.yaml', '[[cat]]', ["[['cat']]", 'tasks, order, sizes, missing']),
        ('a.yaml', '', ['None', 'tasks, order, sizes, missing']),
        ('a.yaml', 'task: [[cat]]', ["unknown key 'task'", 'tasks, order, sizes, missing']),
        ('a.yaml', 'tasks: [[cat]]\nsizes: [1]', ['one of the two']),
        ('a.yaml', 'missing: [cat]', ['no tasks']),
        ('a.yaml', 'tasks: [[dgo]]', ["'dgo' in task 1", "'dog'"]),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text, encoding='latin-1')
    with pytest.raises(ForgettingError) as error:
        Protocol(CLASSES, file=tmp_path / name)
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_category_ids_may_be_text():
    """A number of the command line means the text, too; what is no id is named beside those."""
    ids = dict(zip(['1', '2', 'c', '7', '9'], CLASSES))
    assert Protocol(CLASSES, [[2, 'c', '9']], category_ids=ids).tasks == (('dog', 'cow', 'pig'),)
    with pytest.raises(ForgettingError, match=r'Category id 5 .* has 5 ids, .* being 1 \(cat\), 2'):
        Protocol(CLASSES, [[5]], category_ids=ids)


def test_category_ids_of_data_sets(shapes_root):
    from mmdet.datasets import CocoDataset
    from torch.utils.data import TensorDataset

    dataset = CocoDataset(
        ann_file=f'{shapes_root}/annotations/val.json',
        metainfo=dict(classes=('triangle', 'star')),
        data_prefix=dict(img=''),
        test_mode=True,
    )
    assert set(category_ids_of(dataset).values()) == {'triangle', 'star'}
    assert list(category_ids_of(dataset)) == dataset.cat_ids
    assert category_ids_of(TensorDataset()) is None


@pytest.mark.parametrize('name', ['coco_7x10'])
def test_coco_protocol_is_the_seeded_shuffle(repo_root, name):
    import numpy as np
    from mmdet.datasets import CocoDataset
    from mmengine.config import Config

    shuffled = list(COCO_IDS)
    np.random.seed(123)  # noqa: NPY002  the authors' generator
    np.random.shuffle(shuffled)  # noqa: NPY002
    classes = CocoDataset.METAINFO['classes']
    settings = Config.fromfile(repo_root / f'configs/_base_/protocols/{name}.py').protocol
    assert settings['order'] == shuffled
    protocol = Protocol(classes, category_ids=dict(zip(COCO_IDS, classes)), **settings)
    for number, task in enumerate(protocol.tasks):
        expected = shuffled[70 - 10 * number : 80 - 10 * number]
        assert [COCO_IDS[classes.index(name)] for name in task] == expected
    assert len(protocol) == (7 if name == 'coco_7x10' else 1)
