"""Methods that train parameters themselves: a whole request in both families, from one config."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmgslora.lora import apply_adapter

from .stopped import whole_and_resumed
from .test_classifier_run import small

METHODS = ('neg_grad_plus', 'salun', 'scrub')


def detector(cfg, run_cfg, tmp_path):
    """The tiny detector's run, with what the method's config says of model and optimizer."""
    made = copy.deepcopy(run_cfg)
    made.model.method, made.optim_wrapper = cfg.model.method, cfg.optim_wrapper
    if made.model.method.type == 'SCRUB':
        made.model.method.max_epochs = 1  # of two
    return made, 'detector'


def classifier(cfg, run_cfg, tmp_path):
    made = small(cfg, tmp_path / 'data')
    made.merge_from_dict({'train_cfg.protocol.tasks': [['circle', 'square'], ['star']]})
    made.train_cfg.epochs_per_task = 2
    if made.model.method.type == 'SCRUB':
        made.model.method.max_epochs = 1
    made.train_dataloader.batch_size = 16
    made.param_scheduler = []
    plain = MODELS.build(copy.deepcopy(made.model.classifier))
    made.load_from = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict=plain.state_dict()), made.load_from)
    made.work_dir, made.experiment_name = str(tmp_path / 'run'), tmp_path.name
    return made, 'classifier'


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(('family', 'file'), [(detector, 'shapes'), (classifier, 'classification')])
def test_a_whole_request(method, family, file, run_cfg, repo_root, tmp_path):
    config = Config.fromfile(repo_root / f'configs/baselines/{method}_{file}_forget.py')
    cfg, key = family(config, run_cfg, tmp_path)
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.train()
    record = json.loads(Path(cfg.work_dir, 'forgetting.json').read_text())
    assert record['tune'] == dict(type='Full', target='.*')
    assert record['tasks'][1]['old'] == ['circle', 'square']
    assert record['tasks'][0]['zero_group_ratio'] is None  # there are no groups

    # The original and what each task saved are the merged models, bit for bit.
    model = MODELS.build(copy.deepcopy(cfg.model[key]))
    original = torch.load(cfg.load_from)['state_dict']
    model.load_state_dict(original)
    for task in (1, 2):
        metadata = apply_adapter(model, Path(cfg.work_dir, f'adapters/task_0{task}'))
        assert metadata['partition']['task'] == task
        merged = torch.load(Path(cfg.work_dir, f'merged/task_0{task}.pth'))['state_dict']
        state = model.state_dict()
        assert merged.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in merged.items())
    changed = {name for name in state if not torch.equal(state[name], original[name])}
    assert changed and not any('running_' in name for name in changed)


@pytest.mark.parametrize('method', ['salun', 'scrub'])
def test_killed_in_a_task_and_resumed(method, run_cfg, repo_root):
    """Masks and the original are in the checkpoint."""
    config = Config.fromfile(repo_root / f'configs/baselines/{method}_shapes_forget.py')

    cfg, _ = detector(config, run_cfg, None)
    cfg.train_cfg.epochs_per_task = 3
    whole, parts = (run.model.state_dict() for run in whole_and_resumed(cfg, stop=5))
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name
