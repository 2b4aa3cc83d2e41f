"""What every forgetting method offers to the families and the hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.families.view import View
from mmgslora.lora import LoRAGroup, discover_groups


class Method(ABC):
    """The rule that turns the two views of a step into losses.

    A method never knows what is being trained. It is a plain object, not a module: what it learns
    with are the model's LoRA groups, handed to it by :meth:`bind`.

    Args:
        sparsity: How groups are driven to zero. ``mode`` is 'proximal' (ours: after every
            optimizer step the B matrices of a group shrink together), 'penalty' (the papers':
            a loss term) or 'none'; ``alpha`` its weight; ``by`` the grouping ('block', 'module'
            or 'matrix'); ``warmup_epochs`` how many epochs of every task alpha stays 0;
            ``select`` the share of a task's epochs after which 'proximal' stops selecting and
            refits (see :class:`~mmgslora.engine.GroupSparsityHook`). Defaults to no sparsity.
        dropout: Whether the transformer's dropout is active while forgetting. Defaults to False.
        reset_rows: Whether a finished task also takes the forgotten classes' rows from the
            classifier head (:meth:`~mmgslora.families.ForgettingModel.reset_rows`). Defaults to
            False: the head is frozen for ever, as in the papers.

    Attributes:
        needs_teacher: Whether views must carry their ``drift`` from the adapter-free model.
        prototype_source: What ``prototypes`` are made of, 'embeddings' or 'head'; None for a
            method without them.
        prototype_file: Where to take them from instead, or None.
        prototypes: (C, D) one row per class, NaN for a class without data; set by
            :class:`~mmgslora.engine.PrototypeHook` before the first step.
        alpha: The sparsity weight of the moment; 0 during warm-up.
        groups: The LoRA groups of the bound model.
    """

    needs_teacher: bool = False
    prototype_source: str | None = None
    prototype_file: str | None = None
    prototypes: Tensor | None = None

    def __init__(
        self, sparsity: dict | None = None, dropout: bool = False, reset_rows: bool = False
    ) -> None:
        default = dict(mode='none', alpha=0.0, by='block', warmup_epochs=0, select=0.5)
        sparsity = default | (sparsity or {})
        if sparsity['mode'] not in ('proximal', 'penalty', 'none'):
            raise ForgettingError(
                f'Sparsity mode is {sparsity["mode"]!r}; it can be proximal, penalty or none.'
            )
        self.sparsity = sparsity
        self.dropout = dropout
        self.reset_rows = reset_rows
        self.alpha = 0.0 if sparsity['warmup_epochs'] else sparsity['alpha']
        self.groups: list[LoRAGroup] = []

    def bind(self, model: nn.Module) -> None:
        """Take over the LoRA groups of a model."""
        self.groups = discover_groups(model, by=self.sparsity['by'])

    def settings(self) -> dict[str, Any]:
        """Every setting as it was resolved, for the record of a run."""
        state = ('alpha', 'groups', 'prototypes')
        return {name: value for name, value in vars(self).items() if name not in state}

    @staticmethod
    def of_task(values: Sequence[float]) -> float:
        """The value of a list with one per task; the last one serves all further tasks."""
        partition = ClassPartition.current()
        task = 1 if partition is None else partition.task
        return values[min(task, len(values)) - 1]

    @abstractmethod
    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """Named losses of one step; those with 'loss' in their name are summed."""
