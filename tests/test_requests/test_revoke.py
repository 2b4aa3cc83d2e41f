import json

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.lora import fingerprint
from mmgslora.requests import RequestSequence, revoke
from mmgslora.requests.checkpoint import read_checkpoint


def measured(sequence, checkpoint, tasks, cfg):
    """Stands in for the evaluator: what it was asked."""
    return {'asked': float(len(tasks))}


def test_the_last_request(made):
    """The weights before it are back, and so says everything that is written down."""
    entry = revoke(RequestSequence(made.work_dir), 3, measure=measured)
    checkpoint = read_checkpoint(made.work_dir / 'merged/without_03.pth')
    for key, value in checkpoint['state_dict'].items():
        torch.testing.assert_close(value, made.weights[2][key], rtol=0, atol=1e-6)
    assert entry['result'] == fingerprint(made.weights[2])
    assert entry['base'] == fingerprint(made.weights[0])
    assert checkpoint['meta']['forgotten'] == ['cat', 'dog']
    assert (entry['event'], entry['task'], entry['classes']) == ('taken back', 3, ['person'])
    assert entry['in_force'] == [1, 2] and entry['metrics'] == {'asked': 2.0}
    assert not any('lora' in key for key in checkpoint['state_dict'])


def test_one_after_another_down_to_the_original(made):
    for task, left, name in (
        (2, [1, 3], 'without_02.pth'),
        (1, [3], 'without_01_02.pth'),
        (3, [], 'without_01_02_03.pth'),
    ):
        revoke(RequestSequence(made.work_dir), task, measure=measured)
        sequence = RequestSequence(made.work_dir)
        assert sequence.in_force == left
        assert sequence.current_file == made.work_dir / 'merged' / name
    state = read_checkpoint(sequence.current_file)['state_dict']
    assert all(torch.equal(state[k], v) for k, v in made.weights[0].items())
    with pytest.raises(ForgettingError, match='Request 2 was taken back already'):
        revoke(sequence, 2, measure=measured)


def test_with_nothing_in_force_the_values_are_the_original_s(made):
    for task in (1, 2):
        revoke(RequestSequence(made.work_dir), task, measure=measured)
    entry = revoke(RequestSequence(made.work_dir), 3)
    assert entry['metrics']['Acc'] == 82.0
    record = json.loads((made.work_dir / 'forgetting.json').read_text())
    assert entry['metrics']['per_class/cat'] == record['pretrained']['per_class']['cat']


def test_refused_without_a_trace(made):
    before = sorted(made.work_dir.rglob('*'))
    with pytest.raises(ForgettingError, match='no request 7'):
        revoke(RequestSequence(made.work_dir), 7)
    made.base.write_bytes(made.base.read_bytes()[:100])
    with pytest.raises(ForgettingError, match='cut off or no checkpoint'):
        revoke(RequestSequence(made.work_dir), 2)
    assert sorted(made.work_dir.rglob('*')) == before
