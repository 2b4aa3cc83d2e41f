"""What a training took, read from its checkpoint."""

import torch
from mmengine.logging import HistoryBuffer

from mmgslora.records.training_cost import training_cost


def written(path, times, **meta):
    log = {} if times is None else {'train/time': HistoryBuffer(times, [1] * len(times))}
    torch.save(dict(state_dict={}, meta=meta, message_hub=dict(log_scalars=log)), path)
    return path


def test_steps_and_seconds(tmp_path):
    path = tmp_path / 'a.pth'
    assert training_cost(written(path, [0.5, 0.25], iter=2)) == dict(steps=2, seconds=0.75)
    assert training_cost(written(path, [0.5], iter=2)) == dict(steps=2, seconds=None)
    assert training_cost(written(path, None, iter=2)) == dict(steps=2, seconds=None)
    assert training_cost(written(path, None)) is None
    assert training_cost(tmp_path / 'none.pth') is None
