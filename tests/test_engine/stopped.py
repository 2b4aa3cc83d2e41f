"""One run as a whole, and the same one stopped after an epoch and resumed."""

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner


def whole_and_resumed(cfg: Config, stop: int) -> tuple[Runner, Runner]:
    """Two finished runs of a config; the second ended after ``stop`` epochs and went on."""

    def finish(name, until=None):
        part = copy.deepcopy(cfg)
        part.work_dir = f'{cfg.work_dir}_{name}'
        part.experiment_name = f'{cfg.experiment_name}_{name}_{until}'
        if Path(part.work_dir).exists():
            part.resume, part.load_from = True, None
        runner = Runner.from_cfg(part)
        loop, run_epoch = runner.train_loop, runner.train_loop.run_epoch

        def run_some():
            run_epoch()
            loop.stop_training = loop.epoch == until

        loop.run_epoch = run_some
        runner.train()
        return runner

    whole = finish('whole')
    finish('parts', until=stop)
    return whole, finish('parts')
