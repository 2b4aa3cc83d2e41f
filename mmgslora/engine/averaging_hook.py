"""Replaces the last weights of a task by their average over its last steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from mmgslora.errors import ForgettingError

_KEY = 'averaged_adapters'


@HOOKS.register_module()
class AveragingHook(Hook):
    r"""Averages the adapters of a task; the averaged model is what is merged, measured and kept.

    After every iteration, from the share ``begin`` of a task on,

    .. math:: \bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta

    starting with :math:`\bar\theta = \theta`. The authors' "average weight" does this once per
    epoch with d = 0.9, but never merges, saves or hands on the average. Groups that
    a method holds at zero are exactly zero in the average, if ``begin`` is not before the
    end of their selection.

    Args:
        begin: Share of a task after which averaging begins, in the middle of an epoch too, [0, 1).
            Defaults to 0.5.
        decay: d, [0, 1). Defaults to 0.95.

    Raises:
        ForgettingError: ``begin`` or ``decay`` is out of range.
    """

    priority = 'HIGH'  # the average is what a method measures and AdapterHook saves

    def __init__(self, begin: float = 0.5, decay: float = 0.95) -> None:
        for name, value in (('begin', begin), ('decay', decay)):
            if not 0 <= value < 1:
                raise ForgettingError(f'{name} is {value}; it must be at least 0 and below 1.')
        self.begin, self.decay = begin, decay
        self._average: dict[str, torch.Tensor] = {}

    def before_forget_task(self, runner) -> None:
        self._average = {}

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        loop = runner.train_loop
        epochs = loop.epoch_in_task + batch_idx / len(loop.dataloader)
        if epochs < self.begin * loop.epochs_per_task:
            return
        for name, parameter in _adapters(loop.model):
            if name in self._average:
                self._average[name].lerp_(parameter, 1 - self.decay)
            else:
                self._average[name] = parameter.detach().clone()

    @torch.no_grad()
    def before_merge(self, runner) -> None:
        for name, parameter in _adapters(runner.train_loop.model):
            if name in self._average:
                parameter.copy_(self._average[name])

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint[_KEY] = self._average

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._average = checkpoint.get(_KEY, {})


def _adapters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
