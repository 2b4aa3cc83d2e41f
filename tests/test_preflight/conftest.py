"""A config that can run, on disk, and the two commands that look at it."""

import copy
import logging
from types import SimpleNamespace

import pytest

TASKS = [['circle', 'square'], ['star']]


@pytest.fixture(scope='session')
def random_checkpoint(tiny_cfg, tmp_path_factory):
    """Weights of the tiny detector that nobody trained: enough for what only looks at a file."""
    import torch
    from mmengine.registry import MODELS, DefaultScope

    DefaultScope.get_instance('random_checkpoint', scope_name='mmdet')
    detector = MODELS.build(copy.deepcopy(tiny_cfg.model.detector))
    path = tmp_path_factory.mktemp('random') / 'plain.pth'
    torch.save(dict(state_dict=detector.state_dict(), meta={}), path)
    return path


@pytest.fixture
def cfg(tiny_cfg, random_checkpoint):
    """The tiny run, not to be trained."""
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from = str(random_checkpoint)
    cfg.train_cfg.protocol.tasks = TASKS
    return cfg


@pytest.fixture
def command(cfg, tools, tmp_path, capsys, monkeypatch):
    """Runs a command on the config; says how it ended and what it printed."""
    from mmgslora import check

    # Loggers of runs of other tests in this process have streams that are closed by now.
    monkeypatch.setattr(logging, 'raiseExceptions', False)

    def command(*arguments, name='check', config=None, work_dir=None):
        if config is None:
            config = tmp_path / 'config.py'
            # Not cfg.dump, which spends most of such a test on the form of the text.
            lines = (f'{key} = {value!r}\n' for key, value in cfg.to_dict().items())
            config.write_text(''.join(lines))
        main = check.main if name == 'check' else tools[name]
        code, work_dir = 0, work_dir or tmp_path / 'run'
        try:
            main([str(config), *map(str, arguments), '--work-dir', str(work_dir)])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        assert 'Traceback' not in printed.err
        return SimpleNamespace(code=code, out=printed.out, err=printed.err, work_dir=work_dir)

    return command
