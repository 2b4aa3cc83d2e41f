"""Drives groups to zero and records which ones a task left untouched."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgslora.losses import proximal_step, zero_ratio


@HOOKS.register_module()
class GroupSparsityHook(Hook):
    """Warm-up of alpha, the proximal step, and the norms of the groups.

    The sparsity settings are the method's (``model.method.sparsity``). In mode 'proximal' every
    group's B matrices shrink after each optimizer step: with the learning rate lr of the step,
    ``B_g <- B_g * max(0, 1 - lr * alpha / ||B_g||_F)``. Alpha is 0 during the first
    ``warmup_epochs`` of every task (a step function, as in the authors' code).

    At the end of each task the penalised norms (the joint norm of A and B for 'penalty', that of
    B otherwise) and the share of groups at exactly zero go to the message hub.
    """

    priority = 'ABOVE_NORMAL'

    def before_train_epoch(self, runner) -> None:
        method = runner.train_loop.model.method
        warm = runner.train_loop.epoch_in_task < method.sparsity['warmup_epochs']
        method.alpha = 0.0 if warm else method.sparsity['alpha']

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        method = runner.train_loop.model.method
        if method.sparsity['mode'] == 'proximal' and method.alpha:
            lr = runner.optim_wrapper.get_lr()['lr'][0]
            proximal_step(method.groups, lr * method.alpha)
        runner.message_hub.update_scalar('train/zero_groups', zero_ratio(method.groups))

    def before_merge(self, runner) -> None:
        method = runner.train_loop.model.method
        if method.sparsity['mode'] == 'penalty':
            norms = {group.name: float(group.norm()) for group in method.groups}
        else:
            norms = {group.name: float(group.norm_B()) for group in method.groups if group.B}
        runner.message_hub.update_info('group_norms', norms)
        runner.message_hub.update_info('zero_group_ratio', zero_ratio(method.groups))
