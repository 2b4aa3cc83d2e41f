"""Group sparsity: which groups of LoRA matrices a task may use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup
from mmgslora.losses import group_penalty, proximal_step, zero_ratio
from mmgslora.methods.base import Context, Part
from mmgslora.settings import NonNegative, NonNegativeCount, PositiveShare, build, checked

if TYPE_CHECKING:
    from mmgslora.tuning import Tuner

_SCREEN_AFTER = 0.05
"""Share of a task before which nothing is looked at: at its start all groups are zero."""
_SCREEN_EVERY = 10
"""Steps between two looks for groups at zero: every look waits for the weights."""


class Sparsity(Part):
    r"""Drives groups to zero, the papers' way or ours.

    'penalty' (arXiv 2403.11530) adds :math:`\alpha \sum_g \lVert (A, B)_g \rVert_2` to the loss.
    Alpha is 0 in the first ``warmup_epochs`` of every task (a step function, as in the authors'
    code).

    'proximal' (ours) first selects groups and then refits them. While selecting, every group's B
    shrinks after each step of the optimizer, at the learning rate lr with which the optimizer
    moves it (one step may belong to several iterations, or to none, with gradient accumulation or
    AMP):

    .. math:: B_g \leftarrow B_g \max(0, 1 - \mathrm{lr}\,\alpha \sqrt{n_g} / \|B_g\|_F)

    with :math:`n_g` entries in :math:`B_g`. The root is the usual weight of a group lasso; here it
    also makes alpha a pure number, since Adam moves every entry by about lr a step: at 1 no
    group could ever leave zero. Every few steps, and at the start of every epoch, a look finds the
    groups at zero. One that two looks in a row find there (a group that gathers itself may come
    through zero once) is held, so that its block costs nothing from then on. After the share
    ``select`` all groups at zero are held, and the others train on without shrinkage, which would
    cost accuracy.

    Args:
        mode: 'proximal', 'penalty' or 'none'. Defaults to 'none'.
        alpha: Its weight. Defaults to 0.
        by: The grouping, see :func:`~mmgslora.lora.discover_groups`. Defaults to 'block'.
        warmup_epochs: Epochs of every task in which alpha is 0. Defaults to 0.
        select: Share of a task after which 'proximal' stops selecting. Defaults to 1/3.

    Raises:
        ForgettingError: The optimizer moves the matrices of one group at several learning rates.
    """

    @checked
    def __init__(
        self,
        mode: Literal['proximal', 'penalty', 'none'] = 'none',
        alpha: NonNegative = 0.0,
        by: Literal['block', 'module', 'matrix'] = 'block',
        warmup_epochs: NonNegativeCount = 0,
        select: PositiveShare = 1 / 3,
    ) -> None:
        self.mode, self.alpha, self.by = mode, alpha, by
        self.warmup_epochs, self.select = warmup_epochs, select
        self._groups: list[LoRAGroup] = []
        self._held: list[LoRAGroup] = []
        self._at_zero: set[str] = set()
        self._screened: tuple[int, int, bool] | None = None
        self._summary: dict[str, Any] = {}

    def check(self, tune: Tuner) -> None:
        """See :class:`~mmgslora.methods.base.Part`: there are groups to switch off."""
        if self.mode != 'none':
            tune.groups(self.by)

    def check_epochs(self, epochs: int) -> None:
        """See :class:`~mmgslora.methods.base.Part`: there is a time at which alpha counts."""
        end = self.select * epochs if self.mode == 'proximal' else epochs
        if self.mode != 'none' and self.alpha and self.warmup_epochs >= end:
            raise ForgettingError(
                f'model.method.sparsity.warmup_epochs is {self.warmup_epochs}, and alpha counts '
                f'from there to epoch {end:g} of the {epochs} of a task (epochs_per_task), which '
                f'is never; it can be {math.ceil(end) - 1} at most.'
            )

    @classmethod
    def over(cls, defaults: Mapping[str, Any], given: Mapping[str, Any] | None) -> Sparsity:
        """With a method's defaults, and what its config says over them."""
        return build(cls, {**defaults, **(given or {})}, 'Method sparsity')

    def groups(self, context: Context) -> list[LoRAGroup]:
        """The model's groups; found anew for each model."""
        if not self._groups:
            self._groups = context.model.tune.groups(self.by)
        return self._groups

    def alpha_at(self, context: Context) -> float:
        """Alpha at this moment."""
        over = self.mode == 'none' or context.epoch < self.warmup_epochs
        return 0.0 if over or self.refits(context) else self.alpha

    def refits(self, context: Context) -> bool:
        """Whether groups at zero are held there and the others train on."""
        return self.mode == 'proximal' and context.progress >= self.select

    def losses(self, context: Context) -> dict[str, Tensor]:
        """The penalty, where it is on."""
        alpha = self.alpha_at(context)
        if self.mode != 'penalty' or not alpha:
            return {}
        return dict(loss_sparsity=alpha * group_penalty(self.groups(context)))

    def before_task(self, context: Context) -> None:
        self._groups, self._held, self._at_zero, self._screened = [], [], set(), None

    def before_iter(self, context: Context) -> None:
        moment = context.epoch, context.step // _SCREEN_EVERY, self.refits(context)
        early = context.progress < _SCREEN_AFTER and not moment[-1]
        if self.mode != 'proximal' or early or moment == self._screened:
            return
        self._screened = moment
        # Read off the weights, so that a resumed run holds the same groups.
        groups = self.groups(context)
        zero = [g for g in groups if g.B and not any(map(torch.any, g.B))]
        self._held = [g for g in zero if moment[-1] or g.name in self._at_zero]
        self._at_zero = {group.name for group in zero}
        if len(self._held) < len(groups):  # a step without any adapter would have no gradient
            for group in self._held:
                group.hold()

    def settled(self, context: Context) -> bool:
        return self.mode != 'proximal' or self.refits(context)

    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        alpha = self.alpha_at(context) if self.mode == 'proximal' else 0.0
        if alpha:
            sides = context.optimizer.param_groups
            lr_of = {p: side['lr'] for side in sides for p in side['params']}
            groups = self.groups(context)
            entries = [sum(matrix.numel() for matrix in group.B) for group in groups]
            rates = [_lr(group, lr_of) for group in groups]
            proximal_step(groups, [lr * alpha * math.sqrt(n) for lr, n in zip(rates, entries)])
        # Gradients from before they were held, or where all are, may have moved them.
        for group in self._held:
            for matrix in group.B:
                matrix.zero_()

    @torch.no_grad()
    def after_task(self, context: Context) -> None:
        if self.mode == 'none' and not context.model.tune.has_groups:
            return
        groups = self.groups(context)
        if self.mode == 'penalty':
            norms = {group.name: float(group.norm()) for group in groups}
        else:
            norms = {group.name: float(group.norm_B()) for group in groups if group.B}
        self._summary = dict(groups=norms, zero_group_ratio=zero_ratio(groups))

    def state_dict(self) -> dict[str, Any]:
        return dict(at_zero=sorted(self._at_zero))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._at_zero = set(state.get('at_zero', ()))

    def summary(self) -> dict[str, Any]:
        """``groups``: the penalised norm of each (that of A and B for 'penalty', else of B), and
        ``zero_group_ratio``: the share that is exactly zero.
        """
        return self._summary


def _lr(group: LoRAGroup, lr_of: dict[Tensor, float]) -> float:
    """The learning rate of a group's B; 0 where the optimizer does not move it."""
    rates = sorted({lr_of.get(matrix, 0.0) for matrix in group.B})
    if len(rates) > 1:
        raise ForgettingError(
            f'The optimizer moves LoRA group {group.name!r} at the learning rates {rates}; give '
            'all its lora_B one rate, or group by module.'
        )
    return rates[0] if rates else 0.0
