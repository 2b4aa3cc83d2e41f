"""Stops a run whose loss is no number any more."""

from __future__ import annotations

import math

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from mmgslora.errors import ForgettingError


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Names the loss term that became NaN or infinite and stops.

    The broken weights are never saved: the checkpoint of the last finished epoch stays.

    Raises:
        ForgettingError: A loss term is not finite.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for name, value in (outputs or {}).items():
            if 'loss' not in name or name == 'loss':
                continue
            number = float(value.detach() if isinstance(value, Tensor) else value)
            if not math.isfinite(number):
                raise ForgettingError(
                    f'loss term {name!r} became {number}; start again with a lower learning rate '
                    'or beta in another --work-dir, from merged/task_XX.pth of the last finished '
                    'task if there is one.'
                )
