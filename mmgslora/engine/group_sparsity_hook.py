"""Drives groups to zero and records which ones a task left untouched."""

from __future__ import annotations

import math
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup
from mmgslora.losses import proximal_step, zero_ratio
from mmgslora.methods.base import Method


@HOOKS.register_module()
class GroupSparsityHook(Hook):
    r"""Warm-up of alpha, the proximal step, and the norms of the groups.

    The settings are the method's (``model.method.sparsity``). Alpha is 0 during the first
    ``warmup_epochs`` of every task (a step function, as in the authors' code).

    In mode 'proximal' (ours) a task first selects groups and then refits them. While selecting,
    every group's B shrinks after each step of the optimizer, at the learning rate lr with which
    the optimizer moves it (one step may belong to several iterations, or to none, with gradient
    accumulation or AMP):

    .. math:: B_g \leftarrow B_g \max(0, 1 - \mathrm{lr}\,\alpha \sqrt{n_g} / \|B_g\|_F)

    with :math:`n_g` entries in :math:`B_g`. The root is the usual weight of a group lasso; here it
    also makes alpha a pure number, since Adam moves every entry by about lr a step: at 1 no
    group could ever leave zero. After the share ``select`` of the task's epochs the groups at zero
    are held there and the others train on without shrinkage, which would cost accuracy.

    At the end of each task the penalised norms (the joint norm of A and B for 'penalty', that of
    B otherwise) and the share of groups at exactly zero go to the message hub.

    Raises:
        ForgettingError: The optimizer moves the matrices of one group at several learning rates.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._held: list[LoRAGroup] = []
        self._handle: RemovableHandle | None = None

    def before_train_epoch(self, runner) -> None:
        loop, method = runner.train_loop, runner.train_loop.model.method
        epoch, sparsity = loop.epoch_in_task, method.sparsity
        selecting = (
            sparsity['mode'] == 'penalty' or epoch < sparsity['select'] * loop.epochs_per_task
        )
        active = epoch >= sparsity['warmup_epochs'] and selecting
        method.alpha = sparsity['alpha'] if active else 0.0
        # Read off the weights, so that a resumed run holds the same groups.
        held = sparsity['mode'] == 'proximal' and not selecting
        self._held = [g for g in method.groups if held and g.B and not any(map(torch.any, g.B))]
        # Every epoch anew: each task has an optimizer of its own, a resumed run too.
        self._detach()
        optimizer = runner.optim_wrapper.optimizer
        self._handle = optimizer.register_step_post_hook(partial(self._after_step, method))

    def after_train_epoch(self, runner, metrics=None) -> None:
        self._detach()

    def _detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _after_step(self, method: Method, optimizer: Optimizer, *_) -> None:
        if method.sparsity['mode'] == 'proximal' and method.alpha:
            lr_of = {p: side['lr'] for side in optimizer.param_groups for p in side['params']}
            for group in method.groups:
                entries = sum(matrix.numel() for matrix in group.B)
                proximal_step([group], _lr(group, lr_of) * method.alpha * math.sqrt(entries))
        for group in self._held:
            for matrix in group.B:
                matrix.zero_()

    @torch.no_grad()
    def before_merge(self, runner) -> None:
        method = runner.train_loop.model.method
        if method.sparsity['mode'] == 'penalty':
            norms = {group.name: float(group.norm()) for group in method.groups}
        else:
            norms = {group.name: float(group.norm_B()) for group in method.groups if group.B}
        runner.message_hub.update_info('group_norms', norms)
        runner.message_hub.update_info('zero_group_ratio', zero_ratio(method.groups))


def _lr(group: LoRAGroup, lr_of: dict[Tensor, float]) -> float:
    """The learning rate of a group's B; 0 where the optimizer does not move it."""
    rates = sorted({lr_of.get(matrix, 0.0) for matrix in group.B})
    if len(rates) > 1:
        raise ForgettingError(
            f'The optimizer moves LoRA group {group.name!r} at the learning rates {rates}; give '
            'all its lora_B one rate, or group by module.'
        )
    return rates[0] if rates else 0.0
