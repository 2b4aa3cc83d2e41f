"""A task that ends before its last epoch: the record says why, and a kill changes nothing."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgslora.errors import ForgettingError
from mmgslora.preflight import examine


class Stop(Exception):
    pass


def stopping_at(runner, epoch):
    """Raises instead of beginning a global epoch."""
    loop = runner._train_loop = runner.build_train_loop(runner.cfg.train_cfg)
    plain = loop.run_epoch

    def run_epoch():
        if loop.epoch == epoch:
            raise Stop
        plain()

    loop.run_epoch = run_epoch
    return runner


class AfterEpoch(Hook):
    def __init__(self, call):
        self.call = call

    def after_train_epoch(self, runner, metrics=None):
        self.call()


def learned(runner):
    return {k: v for k, v in runner.model.state_dict().items() if 'lora_' in k}


def test_ends_early_and_goes_on_after_a_kill(run_cfg):
    # Selecting in the first of four epochs; the second is enough for limits like these.
    run_cfg.model.method = dict(type='GuidedGSLoRA', sparsity=dict(select=0.25))
    run_cfg.train_cfg.update(epochs_per_task=4, served=dict(forget_score=1.0, drift=1e3))

    def config(name, **train_cfg):
        cfg = copy.deepcopy(run_cfg)
        cfg.train_cfg.update(train_cfg)
        cfg.work_dir, cfg.experiment_name = f'{run_cfg.work_dir}_{name}', f'{name}_{id(cfg)}'
        return cfg

    whole = Runner.from_cfg(config('whole'))
    first = []
    whole.register_hook(AfterEpoch(lambda: first.append(copy.deepcopy(learned(whole)))))
    whole.train()
    record = json.loads(Path(whole.work_dir, 'forgetting.json').read_text())
    for task in record['tasks']:
        assert task['ended']['served'] is True and task['ended']['epochs'] == 2
        assert task['steps'] * 4 == whole.train_loop.steps_per_task[task['task'] - 1] * 2
        assert 0 < task['ended']['forget_score'] < 1
    assert record['schedule']['served'] == dict(forget_score=1.0, drift=1e3)
    assert Path(whole.work_dir, 'epoch_8.pth').exists()  # the last epoch of its task

    killed = stopping_at(Runner.from_cfg(config('killed')), 5)  # the second one of task 2
    with pytest.raises(Stop):
        killed.train()
    cfg = config('killed')
    cfg.resume, cfg.load_from = True, None
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    again = json.loads(Path(resumed.work_dir, 'forgetting.json').read_text())
    assert [t['ended'] for t in again['tasks']] == [t['ended'] for t in record['tasks']]

    # The steps before are those of a run that knows nothing of limits.
    free = stopping_at(Runner.from_cfg(config('free', served=None)), 1)
    with pytest.raises(Stop):
        free.train()
    one, other = learned(free), first[0]
    assert one and all(torch.equal(one[key], other[key]) for key in one)


def test_settings_that_cannot_be(run_cfg):
    run_cfg.train_cfg.served = dict(drift=-1)
    with pytest.raises(ForgettingError, match='train_cfg.served: drift is -1; it can be a number'):
        Runner.from_cfg(run_cfg).train()
    run_cfg.train_cfg.served = dict()
    run_cfg.model.method = dict(type='NegGradPlus')
    (problem,) = examine(run_cfg).problems['training_settings']
    assert problem.startswith('train_cfg.served compares with the teacher of the method')
    run_cfg.model.method = dict(type='SCRUB')  # one view in a pass: never served
    (problem,) = examine(run_cfg).problems['training_settings']
    assert problem.startswith('train_cfg.served compares both views over a pass, and SCRUB is')
