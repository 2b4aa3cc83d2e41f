"""Every config of the repository: it resolves, and its header has the command that runs it."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
CONFIGS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob('configs/**/*.py'))
    if '_base_' not in path.parts
]


@pytest.mark.parametrize('path', CONFIGS)
def test_config(path):
    cfg = Config.fromfile(ROOT / path)
    assert '_delete_' not in str(cfg.to_dict())  # it stays where the base has nothing to delete
    assert cfg.model and cfg.val_dataloader.dataset and cfg.val_evaluator
    header = (ROOT / path).read_text().partition('\n_base_')[0]
    if cfg.get('train_cfg'):
        assert f'tools/train.py {path}' in header
        assert cfg.train_dataloader.dataset and cfg.optim_wrapper
        # The loop ends a cosine with the task; other schedules must say where they end.
        if cfg.train_cfg.type == 'ContinualForgettingLoop':
            measured = cfg.train_cfg.get('evaluate_on', 'test')
            assert set(re.findall(r'(\w+)_evaluator\.', header)) <= {measured}
            epochs = cfg.train_cfg.epochs_per_task
            for schedule in cfg.get('param_scheduler') or ():
                if 'Cosine' in schedule.type:
                    assert schedule.get('T_max', epochs) == epochs
                else:
                    assert schedule.get('end') is not None
    if cfg.get('load_from') and '://' not in cfg.load_from and 'work_dirs' in cfg.load_from:
        # What a run starts from is what another config leaves behind.
        assert any(Path(other).stem in cfg.load_from for other in CONFIGS)
