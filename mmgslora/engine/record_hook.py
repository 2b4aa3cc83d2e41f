"""Keeps the record of a run: ``forgetting.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from rich.console import Console

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.datasets.views import ForgettingViews
from mmgslora.env import versions
from mmgslora.lora import trainable_share
from mmgslora.report import forgetting_table, plot_forgetting, summary_lines


def _nest(metrics: dict) -> dict:
    """The flat metrics of an evaluation with 'per_class/x' (and 'paper/per_class/x') as dicts."""
    nested: dict = {}
    for key, value in metrics.items():
        head, found, name = key.partition('per_class/')
        if found:
            nested.setdefault(f'{head}per_class', {})[name] = value
        else:
            nested[key] = value
    return nested


def _few_shot(views: ForgettingViews) -> dict | None:
    """The exact images of a few-shot task, per class; None where a share of all images is used."""
    if views.few_shot is None:
        return None
    images = {side: views.images_of_classes(side) for side in ('forget', 'retain')}
    return dict(images_per_class=views.few_shot, seed=views.seed, **images)


def _from_here(path: str | None) -> str | None:
    """The path as a user would type it, so that records do not depend on the machine."""
    return path and os.path.relpath(path)


@HOOKS.register_module()
class RecordHook(Hook):
    """Writes ``forgetting.json`` and ``forgetting.png`` after every task, a table at the end.

    The finished tasks are kept in the message hub, so that a resumed run goes on with the record
    that belongs to its checkpoint.
    """

    priority = 'LOW'

    def before_run(self, runner) -> None:
        # A run that is resumed has a checkpoint of its own to start from.
        if runner.cfg.get('load_from') and not runner.cfg.get('resume'):
            runner.message_hub.update_info('original', str(runner.cfg.load_from))

    @master_only
    def after_forget_task(self, runner, metrics: dict) -> None:
        loop, hub, partition = runner.train_loop, runner.message_hub, ClassPartition.current()
        metrics = _nest(metrics)
        trainable, total = trainable_share(loop.model.plain_model)
        task = dict(
            task=partition.task,
            forget=list(partition.forget),
            retain=list(partition.retain),
            old=list(partition.old),
            missing=list(partition.missing),
            per_class=metrics.pop('per_class'),
            metrics=metrics,
            groups=hub.get_info('group_norms'),
            zero_group_ratio=hub.get_info('zero_group_ratio'),
            trainable_params=trainable,
            total_params=total,
            train_images=dict(forget=loop.views.num_forget, retain=loop.views.num_retain),
            few_shot=_few_shot(loop.views),
            steps=loop.steps_per_task[partition.task - 1],
            train_seconds=hub.get_info('train_seconds'),
            eval_seconds=hub.get_info('eval_seconds'),
        )
        done = [t for t in hub.get_info('finished_tasks', []) if t['task'] < partition.task]
        hub.update_info('finished_tasks', [*done, task])
        record = self.record(runner)
        path = Path(runner.work_dir, 'forgetting.json')
        draft = path.with_suffix('.tmp')
        draft.write_text(json.dumps(record, indent=1))
        draft.replace(path)
        plot_forgetting(record, path.with_suffix('.png'))

    @master_only
    def after_train(self, runner) -> None:
        record = self.record(runner)
        console = Console(width=max(Console().width, 100))
        console.print(forgetting_table(record))
        for line in summary_lines(record):
            console.print(line)
        console.print(f'Results: {_from_here(runner.work_dir)}')

    def record(self, runner) -> dict:
        """The content of ``forgetting.json``."""
        return dict(
            config=_from_here(runner.cfg.filename) or runner.experiment_name,
            seed=runner.seed,
            original=runner.message_hub.get_info('original'),
            versions=versions(),
            prototype_seconds=runner.message_hub.get_info('prototype_seconds'),
            pretrained=_nest(runner.message_hub.get_info('pretrained')),
            tasks=runner.message_hub.get_info('finished_tasks', []),
        )
