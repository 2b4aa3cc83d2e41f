"""What only one process can show; several are in test_engine/test_distributed.py."""

import pytest
from mmengine.config import Config

from mmgslora.errors import ForgettingError
from mmgslora.processes import join_processes


def test_a_process_that_nothing_started_is_told_what_does(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    cfg = Config(dict(launcher='pytorch'))
    with pytest.raises(ForgettingError, match='RANK is not set.*tools/dist_train.sh CONFIG GPUS'):
        join_processes(cfg)
    assert 'model_wrapper_cfg' not in cfg


@pytest.mark.parametrize('launcher', ['none', 'slurm', 'mpi'])
def test_other_launchers_are_left_to_mmengine(launcher):
    cfg = Config(dict(launcher=launcher))
    join_processes(cfg)
    assert dict(cfg) == dict(launcher=launcher)
