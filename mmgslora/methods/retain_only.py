"""Retain only: the control that trains on what must stay and asks nothing of the rest (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmengine.registry import MODELS
from torch import Tensor

from mmgslora.methods.base import Method

if TYPE_CHECKING:
    from mmgslora.families.view import View


@MODELS.register_module()
class RetainOnly(Method):
    """Train on the retain view alone: the same steps as forgetting, without a forget term.

    A control for tables: the labels of the classes to forget are gone from the retain images, so
    training on these alone forgets something too. Only what a method forgets beyond that is its
    own.

    Args:
        sparsity: See :class:`Method`. Defaults to no sparsity.
        dropout: See :class:`Method`. Defaults to False.
    """

    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """See :class:`Method`."""
        return self.retain_losses(retain)
