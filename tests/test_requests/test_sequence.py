import copy
import re

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.lora.stored import StoredAdapter
from mmgslora.models import ImageClassifier
from mmgslora.requests import RequestSequence
from mmgslora.requests.checkpoint import read_checkpoint, write_checkpoint
from mmgslora.tuning import Full

from .made_run import CLASSIFIER, make_run


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def by_hand(made, tasks):
    """W + the sum of s B A of these tasks, in float64."""
    state = {k: v.double() if v.is_floating_point() else v for k, v in made.weights[0].items()}
    for task in tasks:
        for name, (a, b, scale) in made.pairs[task - 1].items():
            state[f'{name}.weight'] = state[f'{name}.weight'] + scale * b.double() @ a.double()
    return state


@pytest.mark.parametrize('tasks', [[], [1], [1, 2], [1, 2, 3], [1, 3], [3, 1], [2, 3], [3]])
def test_any_requests_on_the_original(made, tasks):
    sequence = RequestSequence(made.work_dir, made.base)
    state = sequence.state(tasks)
    if tasks == sequence.tasks[: len(tasks)]:
        assert same(state, made.weights[len(tasks)])  # to the last bit
    expected = by_hand(made, tasks)
    for key, value in state.items():
        torch.testing.assert_close(value.double(), expected[key].double(), rtol=0, atol=1e-6)


def test_leaving_one_out_is_a_run_that_merges_only_the_others(made):
    """The other two folders merged by hand into the plain weights."""
    expected = made.weights[0]
    for task in (1, 3):
        adapter = StoredAdapter.read(made.work_dir / f'adapters/task_0{task}')
        expected = adapter.merged(expected, own_base=False)
    state = RequestSequence(made.work_dir, made.base).state([1, 3])
    assert same(state, expected)
    assert not same(state, made.weights[3])


def test_an_original_in_half_precision_is_the_model_that_was_made_of_it(tmp_path):
    """The run loads it into float32, which is what adapters and their fingerprints are of."""
    plain = ImageClassifier(**copy.deepcopy(CLASSIFIER)).eval()
    half = {key: value.half() for key, value in plain.state_dict().items()}
    plain.load_state_dict(half)
    made = make_run(tmp_path, plain=plain)
    write_checkpoint(tmp_path / 'half.pth', half, {})
    sequence = RequestSequence(made.work_dir, tmp_path / 'half.pth')
    assert same(sequence.state([1, 2, 3]), made.weights[3])


def test_the_original_from_where_it_is(made, tmp_path):
    """By the record's path, by --base, and refused where it is another model or not there."""
    sequence = RequestSequence(made.work_dir)
    assert same(sequence.state([1, 2, 3]), made.weights[3])
    wrapped = {f'classifier.{key}': value for key, value in made.weights[0].items()}
    write_checkpoint(tmp_path / 'training.pth', wrapped, {})
    assert same(
        RequestSequence(made.work_dir, tmp_path / 'training.pth').state([1]), made.weights[1]
    )
    for task in ([3], [1, 3], []):
        with pytest.raises(ForgettingError, match='belongs to another model|merged into this'):
            RequestSequence(made.work_dir, made.work_dir / 'merged/task_02.pth').state(task)
    made.base.unlink()
    with pytest.raises(ForgettingError, match='original model .* is not here.*--base'):
        sequence.state([1])


def test_what_is_said_of_requests(made):
    sequence = RequestSequence(made.work_dir)
    assert (sequence.tasks, sequence.in_force, sequence.taken_back) == ([1, 2, 3], [1, 2, 3], [])
    assert sequence.classes([1, 3]) == ['cat', 'person'] and sequence.gone_before == []
    assert sequence.current_file == made.work_dir / 'merged/task_03.pth'
    assert sequence.meta([1, 3])['forgotten'] == ['cat', 'person']
    with pytest.raises(ForgettingError, match='no request 4 .* it has 1, 2, 3'):
        sequence.adapter(4)


def test_an_adapter_that_is_not_the_one_in_the_ledger(made):
    """Edited with its own hash set right: the ledger knows the metadata's hash too."""
    path = made.work_dir / 'adapters/task_02/metadata.json'
    path.write_text(path.read_text().replace('"dog"', '"owl"'))
    sequence = RequestSequence(made.work_dir)
    with pytest.raises(ForgettingError, match='Line 2 of .* adapters/task_02/metadata.json was'):
        sequence.state([1, 2, 3])
    assert same(sequence.state([1]), made.weights[1])


def test_a_run_from_before_there_was_a_ledger(tmp_path):
    made = make_run(tmp_path, ledger=False)
    sequence = RequestSequence(made.work_dir)
    assert sequence.ledger.entries == []
    assert same(sequence.state([1, 2, 3]), made.weights[3])


def test_whole_parameters_cannot_do_without_what_they_were_trained_on(made):
    """Request 3 also replaces a Linear that request 1 had changed; request 2 is independent."""
    model = ImageClassifier(**copy.deepcopy(CLASSIFIER))
    model.load_state_dict(made.weights[2])
    name = next(iter(made.pairs[0]))
    tune = Full(target=re.escape(f'{name}.weight'))
    tune.attach(model, ())
    tune.begin_task()
    with torch.no_grad():
        model.get_submodule(name).weight.add_(1.0)
    (made.work_dir / 'ledger.jsonl').unlink()
    tune.save(made.work_dir / 'adapters/task_03', {})
    sequence = RequestSequence(made.work_dir)
    with pytest.raises(ForgettingError, match=f"Request 3 holds '{name}.* whole"):
        sequence.state([2, 3])
    assert torch.equal(sequence.state([1, 3])[f'{name}.weight'], model.get_submodule(name).weight)


def test_the_same_checkpoint_is_the_same_file(tmp_path):
    """Two runs that end with the same weights have the same hash in their records."""
    for name in 'ab':
        write_checkpoint(tmp_path / name / 'task_01.pth', {'w': torch.ones(3)}, dict(task=1))
    one, other = (tmp_path / name / 'task_01.pth' for name in 'ab')
    assert one.read_bytes() == other.read_bytes()


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    torch.save(dict(state_dict={}, meta=dict(bomb=Bomb())), tmp_path / 'bomb.pth')
    with pytest.raises(ForgettingError, match='names code to run'):
        read_checkpoint(tmp_path / 'bomb.pth')
    assert not (tmp_path / 'ran').exists()
    write_checkpoint(tmp_path / 'a.pth', {'w': torch.ones(100)}, {})
    data = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(data[: len(data) // 2])
    with pytest.raises(ForgettingError, match='cut off or no checkpoint'):
        read_checkpoint(tmp_path / 'a.pth')
    with pytest.raises(ForgettingError, match="nowhere.pth' does not exist"):
        read_checkpoint(tmp_path / 'nowhere.pth')
