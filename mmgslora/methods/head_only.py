"""Head only: the control that trains nothing, for models that are handed out sealed (ours)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmgslora.families.view import View
from mmgslora.methods.base import METHODS, Context
from mmgslora.methods.retain_only import RetainOnly


@METHODS.register_module()
class HeadOnly(RetainOnly):
    """Learn nothing: no step moves anything, and the model stays bit for bit what it was.

    A control for tables. What ``train_cfg.seal=True`` then leaves has lost the head's rows of the
    classes and nothing else; numbers that it reaches too are no evidence of forgetting.
    """

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        return dict(loss_nothing=0 * views['retain'].now.logits.sum())

    def before_step(self, context: Context) -> None:
        """See :class:`Method`; weight decay would move what has a gradient, zero or not."""
        context.optimizer.zero_grad(set_to_none=True)
