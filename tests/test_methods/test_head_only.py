"""The control that trains nothing."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner


@pytest.mark.parametrize('tune', ['LoRA', 'Full'])
def test_the_model_stays_as_it_was_and_only_the_sealed_one_is_another(run_cfg, tune):
    """Whatever could be trained: weight decay is on."""
    assert run_cfg.optim_wrapper.optimizer.weight_decay > 0
    run_cfg.model.update(method=dict(type='HeadOnly'), tune=dict(type=tune))
    run_cfg.train_cfg.update(epochs_per_task=1, seal=True, protocol=dict(tasks=[['circle']]))
    Runner.from_cfg(run_cfg).train()
    work_dir = Path(run_cfg.work_dir)
    before = torch.load(run_cfg.load_from)['state_dict']
    after, sealed = (
        torch.load(work_dir / f'{kind}/task_01.pth')['state_dict'] for kind in ('merged', 'sealed')
    )
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any(
        not torch.equal(value, before[name]) for name, value in sealed.items() if name in before
    )
    record = json.loads((work_dir / 'forgetting.json').read_text())
    (task,) = record['tasks']
    assert (
        task['zero_group_ratio'] == (1 if tune == 'LoRA' else None)
        and task['metrics']['sealed/AP_f'] == 0
    )
    assert (
        task['per_class']['circle'] == record['pretrained']['every_query/per_class']['circle'] > 0
    )
