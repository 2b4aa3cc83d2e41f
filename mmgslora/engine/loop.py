"""One Runner for a whole sequence of forgetting tasks."""

from __future__ import annotations

import copy
import logging
import time
from functools import partial
from typing import Literal

import torch
from mmengine.model import is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, set_random_seed
from torch import nn
from torch.utils.data import DataLoader

from mmgslora.errors import ForgettingError
from mmgslora.evaluation import publish_tasks, remember_pretrained
from mmgslora.methods.served import Served
from mmgslora.preflight import HUB_KEY, begin, made_with
from mmgslora.settings import Count

_SEALED = {f'{kind}_{group}' for kind in ('AP', 'Acc') for group in 'for'}


@LOOPS.register_module()
class ContinualForgettingLoop(EpochBasedTrainLoop):
    """Forgets one task after another; global epoch e belongs to task ``e // epochs_per_task + 1``.

    Because tasks are slices of the global epoch, MMEngine's own checkpoints resume at the right
    task and epoch. Every epoch starts from seeds of its own, so that a resumed run gives the
    numbers of an uninterrupted one.

    At the start of a task: the class partition is published, the adapter is fresh, and data
    loader, optimizer and schedulers are built anew; then ``call_hook('before_forget_task')``.
    At its end: ``call_hook('before_merge')``, merge, evaluation with the head as it was trained,
    and ``call_hook('after_forget_task', metrics=...)``, all before MMEngine saves the checkpoint of
    the task's last epoch. The last weights of a task are its result.

    With ``seal`` the model is measured once more with the rows of all classes that must be gone
    sealed (:func:`~mmgslora.models.seal_layer`), under ``sealed/``: what one hands out, not what
    was forgotten. The model itself stays as it was trained, so the sequence is the same.

    Args:
        runner: The Runner.
        dataloader: Config of the training data loader; its data set is a
            :class:`~mmgslora.datasets.ForgettingViews`.
        protocol: Arguments of :class:`~mmgslora.datasets.Protocol`, e.g. ``tasks`` and ``missing``.
        epochs_per_task: Epochs of a task, after each of which a checkpoint is saved. A cosine
            schedule over epochs that has neither ``T_max`` nor ``end`` takes a task from its first
            epoch to its last.
        steps_per_task: Steps of a task, whatever the size of its data: each of its epochs has the
            same share of them, and goes on in the data where the last one ended. Defaults to None:
            an epoch is a pass.
        evaluate_on: The split that the pre-trained model and every task are measured on: 'test',
            or 'val' for choosing settings. Its data loader and evaluator must be in the config.
            Defaults to 'test'.
        served: Limits under which a task ends before its last epoch, see
            :class:`~mmgslora.methods.served.Served`; ``epochs_per_task`` stays the most, and the
            schedule is that of all of them. Defaults to None: every task has all its epochs.
        seal: Whether each task also leaves a sealed checkpoint, and its metrics. Defaults to False.

    Raises:
        ForgettingError: There is a reason not to start (:mod:`mmgslora.preflight`).
    """

    def __init__(
        self,
        runner,
        dataloader: dict,
        protocol: dict,
        epochs_per_task: Count,
        steps_per_task: Count | None = None,
        evaluate_on: Literal['test', 'val'] = 'test',
        served: dict | None = None,
        seal: bool = False,
    ) -> None:
        self.evaluate_on = evaluate_on
        self.seal = seal
        plan = begin(runner.cfg)
        self.views, self.protocol = plan.views, plan.protocol
        self.served = None if served is None else Served(**served)
        self._made_with = made_with(runner.cfg, self.protocol)
        for note in plan.notes:
            runner.logger.info(note)
        self.epochs_per_task = epochs_per_task
        # Workers that outlive an epoch would not take the seeds of the next one, and MMDetection's
        # batch sampler, by aspect ratio, would tear the pairs of the two views apart.
        ours = dict(dataset=self.views, persistent_workers=False, batch_sampler=None)
        self._loader_cfg = {**dataloader, **ours}
        if steps_per_task is not None:
            pairs = steps_per_task // epochs_per_task * dataloader['batch_size'] // 2
            self._loader_cfg['sampler'] = {**dataloader['sampler'], 'pairs': pairs}
        self._runner = runner  # BaseLoop would set it too late
        runner.logger.addFilter(_is_no_frozen_parameter)
        # Building every task's loader now finds what is wrong with task 7 before task 1 trains.
        steps = [len(self._build_loader(t)) for t in range(1, len(self.protocol) + 1)]
        if 0 in steps:
            raise ForgettingError(
                f'Task {steps.index(0) + 1} would have no step: its images do not fill a batch, '
                'and train_dataloader.drop_last leaves out what does not; set drop_last=False.'
            )
        super().__init__(
            runner,
            self._build_loader(1),
            max_epochs=epochs_per_task * len(self.protocol),
        )
        self._max_iters = epochs_per_task * sum(steps)
        self.steps_per_task = [epochs_per_task * n for n in steps]
        self.steps_done, self.ended = 0, None
        if self.served is not None:
            self.model.watchers.append(self.served.add)

    @property
    def task(self) -> int:
        """Number of the task that the current epoch belongs to, from 1."""
        return min(self._epoch // self.epochs_per_task + 1, len(self.protocol))

    @property
    def epoch_in_task(self) -> int:
        """Epochs of the current task that are done."""
        return self._epoch % self.epochs_per_task

    @property
    def model(self) -> nn.Module:
        """The model without a distributed wrapper."""
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    @property
    def evaluation_loop(self) -> BaseLoop:
        """The runner's loop over the split that is measured on."""
        return self.runner.test_loop if self.evaluate_on == 'test' else self.runner.val_loop

    def run(self) -> nn.Module:
        """Serve all requests."""
        self.runner.message_hub.update_info(HUB_KEY, self._made_with)
        self.runner.call_hook('before_train')
        if self._epoch == 0:
            self._evaluate_pretrained()
        elif self.epoch_in_task:
            self._enter_task()
            self._count_steps()
        while self._epoch < self._max_epochs and not self.stop_training:
            if self.epoch_in_task == 0:
                self._start_task()
            self.run_epoch()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """One epoch; the last one of a task ends the task."""
        self._seed_epoch()
        started = time.perf_counter()
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self._iter
        try:
            for idx, data_batch in enumerate(self.dataloader):
                self.run_iter(idx, data_batch)
        except ForgettingError as error:
            place = f'epoch {self.epoch_in_task + 1}, iteration {self._iter - first + 1}'
            # A worker process hands its error on as the text of a traceback, the sentence last.
            sentence = str(error).rpartition('ForgettingError: ')[2].strip()
            raise ForgettingError(f'Task {self.task}, {place}: {sentence}') from error
        self._add_time('train_seconds', time.perf_counter() - started)
        self.steps_done = (self.epoch_in_task + 1) * len(self.dataloader)
        if self.served is not None:
            self._see_whether_served()
        if self.epoch_in_task == self.epochs_per_task - 1:
            self._end_task()
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _see_whether_served(self) -> None:
        """Go on to the last epoch of a task that needs no more of them."""
        found = self.served.end_pass()
        self.ended = dict(epochs=self.epoch_in_task + 1, **(found or {'served': False}))
        if found is None:
            return
        self.runner.logger.info(
            'In this pass {forget_score:.4f} was left of the scores to forget, the retain view had '
            'drifted by {drift:.4f} nats'.format(**found)
        )
        if found['served']:
            self._epoch = self.task * self.epochs_per_task - 1
            self.runner.optim_wrapper.zero_grad()  # what was accumulated and took no step

    def _evaluate_pretrained(self) -> None:
        self.protocol.partition(1).publish()
        publish_tasks(self.protocol.tasks)
        self.runner.logger.info('Measuring the model before the first task')
        remember_pretrained(self._evaluate())

    def _build_loader(self, task: int) -> DataLoader:
        self.views.set_partition(self.protocol.partition(task))
        return self.runner.build_dataloader(self._loader_cfg, seed=self.runner.seed)

    def _enter_task(self) -> None:
        """What a task needs whether it begins now or is resumed in its middle."""
        self.protocol.partition(self.task).publish()
        self.dataloader = self._build_loader(self.task)

    def _count_steps(self) -> None:
        # Per task, so that gradients accumulated over several steps never cross into the next one.
        steps = self.steps_per_task[self.task - 1]
        done = self.epoch_in_task * len(self.dataloader)
        self.runner.optim_wrapper.initialize_count_status(self.runner.model, done, steps)

    def _generator(self) -> torch.Generator:
        """Source of fresh adapters: the same in every process and after a resume."""
        return torch.Generator().manual_seed((self.runner.seed or 0) + self.task)

    def _start_task(self) -> None:
        runner = self.runner
        self._enter_task()
        model = self.model
        model.tune.begin_task(self._generator(), self.task == 1, model.method.teachers)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
        runner.param_schedulers = None  # MMEngine scales no rate that a schedule has begun with
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if runner.cfg.get('param_scheduler'):
            schedulers = _over_a_task(runner.cfg.param_scheduler, self.epochs_per_task)
            runner.param_schedulers = runner.build_param_scheduler(schedulers)
        self._count_steps()
        # MMEngine copies the whole history of a scalar whenever it adds to it. It also keeps a
        # list of them, and would warn of each that is gone when a checkpoint is resumed.
        for key in runner.message_hub.log_scalars:
            runner.message_hub._resumed_keys.pop(key, None)
        runner.message_hub.log_scalars.clear()
        for key in ('train_seconds', 'eval_seconds'):
            runner.message_hub.update_info(key, 0.0)
        partition = self.protocol.partition(self.task)
        runner.logger.info(
            f'Task {self.task} of {len(self.protocol)}: forget {", ".join(partition.forget)}; '
            f'{self.views.num_forget} forget and {self.views.num_retain} retain images'
        )
        runner.call_hook('before_forget_task')

    def _end_task(self) -> None:
        self.runner.call_hook('before_merge')
        self.model.tune.end_task(self._generator())
        # MMEngine's own lines count the epochs of all tasks: Epoch(val) [15].
        self.runner.logger.info(f'Measuring after task {self.task} of {len(self.protocol)}')
        started = time.perf_counter()
        metrics = self._evaluate()
        self._add_time('eval_seconds', time.perf_counter() - started)
        if self.seal:
            metrics = {**metrics, **self._evaluate_sealed()}
        self.runner.call_hook('after_forget_task', metrics=metrics)

    def _evaluate(self) -> dict[str, float]:
        metrics = self.evaluation_loop.run()
        # MMEngine expects to come back from a ValLoop only, not from a TestLoop, to the training.
        self.runner.message_hub.update_info('loop_stage', 'train')
        return metrics

    def _evaluate_sealed(self) -> dict[str, float]:
        partition = self.protocol.partition(self.task)
        with self.model.sealed(partition.labels('forget') + partition.labels('old')):
            metrics = self._evaluate()
        return {f'sealed/{key}': metrics[key] for key in _SEALED & metrics.keys()}

    def _add_time(self, key: str, seconds: float) -> None:
        hub = self.runner.message_hub
        hub.update_info(key, hub.get_info(key, 0.0) + seconds)

    def _seed_epoch(self) -> None:
        """Give every epoch, and its data workers, seeds that depend on nothing before it."""
        seed = (self.runner.seed or 0) + 10_000 * (self._epoch + 1)
        set_random_seed(seed, diff_rank_seed=True)
        init = self.dataloader.worker_init_fn
        if isinstance(init, partial) and 'seed' in init.keywords:
            self.dataloader.worker_init_fn = partial(init, seed=seed)


def _is_no_frozen_parameter(line: logging.LogRecord) -> bool:
    """Whether a line of the log is not one of hundreds that MMEngine warns with for paramwise_cfg.

    It has one for every parameter that does not learn, and here nearly none of them does.
    """
    return not line.getMessage().endswith('is skipped since its requires_grad=False')


def _over_a_task(schedulers: dict | list[dict], epochs: int) -> list[dict]:
    """The schedulers' configs, with a cosine over epochs that names no end reaching over a task."""
    filled = []
    for scheduler in copy.deepcopy([schedulers] if isinstance(schedulers, dict) else schedulers):
        ends = scheduler.get('T_max') or scheduler.get('end')
        if 'Cosine' in str(scheduler['type']) and scheduler.get('by_epoch', True) and not ends:
            scheduler['end'] = epochs
        filled.append(scheduler)
    return filled
