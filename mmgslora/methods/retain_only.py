"""Retain only: the control that trains on what must stay and asks nothing of the rest (ours)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmgslora.families.view import View
from mmgslora.methods.base import METHODS, Context, Method, task_terms
from mmgslora.methods.sparsity import Sparsity
from mmgslora.settings import checked


@METHODS.register_module()
class RetainOnly(Method):
    """Train on the retain view alone: the same steps as forgetting, without a forget term.

    A control for tables: the labels of the classes to forget are gone from the retain images, so
    training on these alone forgets something too. Only what a method forgets beyond that is its
    own.

    Args:
        sparsity: See :class:`~mmgslora.methods.sparsity.Sparsity`. Defaults to none.
        dropout: See :class:`Method`. Defaults to False.
    """

    sides = ('retain',)

    @checked
    def __init__(self, sparsity: dict | None = None, dropout: bool = False) -> None:
        super().__init__(dropout)
        self.sparsity = Sparsity.over({}, sparsity)
        self.parts = [self.sparsity]

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        return {**task_terms(views['retain']), **self.sparsity.losses(context)}
