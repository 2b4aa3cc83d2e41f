"""Calls a method at the moments of a task."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgslora.engine.overflow import if_taken

_KEYS = ('method', 'tune', 'together')


@HOOKS.register_module()
class MethodHook(Hook):
    """Lets a method act before a task, at each iteration and step, and after the task.

    A step is the optimizer's: with gradient accumulation or AMP one may belong to several
    iterations, or to none. What method, tuner and model need to go on after a kill is in every
    checkpoint. The seconds that the method takes before a task, and what it says of a task, go
    to the message hub.

    Raises:
        ForgettingError: At the first step of a task, something that is tuned gets no gradient.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._learns = True

    def before_forget_task(self, runner) -> None:
        self._learns = False  # until it was seen to
        context = self._context(runner)
        started = time.perf_counter()
        runner.train_loop.model.method.before_task(context)
        seconds = time.perf_counter() - started
        runner.message_hub.update_info('prepare_seconds', seconds)

    def before_train_epoch(self, runner) -> None:
        # Every epoch anew: each task has an optimizer of its own, a resumed run too.
        self._detach()
        model, context = runner.train_loop.model, self._context(runner)

        def before_step() -> None:
            # Gradients exist just before a step only: OptimWrapper clears them right after it.
            if not self._learns:
                model.tune.check_gradients()
                self._learns = True
            model.method.before_step(context)

        optimizer = runner.optim_wrapper.optimizer
        self._handles = [
            optimizer.register_step_pre_hook(if_taken(before_step)),
            optimizer.register_step_post_hook(if_taken(lambda: model.method.after_step(context))),
        ]

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        loop = runner.train_loop
        loop.model.context.step = loop.epoch_in_task * len(loop.dataloader) + batch_idx
        loop.model.method.before_iter(loop.model.context)

    def after_train_epoch(self, runner, metrics=None) -> None:
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_merge(self, runner) -> None:
        method = runner.train_loop.model.method
        method.after_task(self._context(runner))
        runner.message_hub.update_info('method_summary', method.summary())

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.train_loop.model
        checkpoint.update({key: getattr(model, key).state_dict() for key in _KEYS})

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.train_loop.model
        for key in _KEYS:
            getattr(model, key).load_state_dict(checkpoint.get(key, {}))

    @staticmethod
    def _context(runner):
        """The model's context with all that the run knows of the moment."""
        loop = runner.train_loop
        context = loop.model.context
        context.epoch = loop.epoch_in_task
        context.steps = loop.steps_per_task[loop.task - 1]
        context.optimizer = runner.optim_wrapper.optimizer
        context.loader, context.work_dir = loop.dataloader, Path(runner.work_dir)
        context.seed = runner.seed or 0
        context.generator.manual_seed(context.seed + 10_000 * (loop.epoch + 1))
        return context
