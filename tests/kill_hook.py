"""A hook for tests: the process dies as if the power had failed."""

import os
import signal
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    """Sends the process a signal after the given global iteration, unless ``flag`` exists."""

    def __init__(self, after_iter: int, flag: str, number: int = signal.SIGKILL) -> None:
        self.after_iter, self.flag, self.number = after_iter, Path(flag), number

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.after_iter and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), self.number)
