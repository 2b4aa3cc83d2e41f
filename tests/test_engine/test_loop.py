"""Whole tiny runs: two forgetting tasks of two epochs each."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from mmgslora.lora import lora_layers


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items() if 'lora_' not in k}


@pytest.fixture
def finished(run_cfg):
    runner = Runner.from_cfg(run_cfg)
    start = weights(runner.model)
    runner.train()
    return runner, start


def test_two_tasks(finished, tiny_checkpoint):
    runner, _ = finished
    work_dir = Path(runner.work_dir)
    record = json.loads((work_dir / 'forgetting.json').read_text())
    assert [t['forget'] for t in record['tasks']] == [['circle', 'square'], ['star']]
    assert [t['old'] for t in record['tasks']] == [[], ['circle', 'square']]
    assert 'AP_o' in record['tasks'][1]['metrics']
    assert record['tasks'][0]['steps'] == 2 * -(-2 * record['tasks'][0]['train_images']['retain'] // 8)
    assert set(record['tasks'][0]['groups']) == {
        'encoder.layers.0.ffn',
        'decoder.layers.0.ffn',
        'decoder.layers.1.ffn',
    }
    for name in ('forgetting.png', 'before_after.png', 'merged/task_01.pth', 'merged/task_02.pth'):
        assert (work_dir / name).stat().st_size > 0
    assert (work_dir / 'adapters/task_02/adapter_model.safetensors').is_file()


def test_only_the_adapted_weights_changed(finished, tiny_checkpoint):
    """Frozen parameters and buffers, batch-norm statistics too, are bit-identical."""
    runner, _ = finished
    before = torch.load(tiny_checkpoint)['state_dict']
    after = {k[len('detector.') :]: v for k, v in weights(runner.model).items()}
    adapted = {f'{name}.weight' for name in lora_layers(runner.model.detector)}
    assert after.keys() == before.keys()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == adapted
    assert any('running_mean' in k for k in before)
