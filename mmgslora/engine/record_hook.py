"""Keeps the record of a run: ``forgetting.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgslora.atomic import write_text
from mmgslora.audit.verdict import limits_of
from mmgslora.datasets.protocol import ClassPartition
from mmgslora.datasets.views import ForgettingViews
from mmgslora.env import versions
from mmgslora.loading import local_path
from mmgslora.lora import trainable_share
from mmgslora.methods.base import Method
from mmgslora.records.finished_run import sha256
from mmgslora.records.record import merged_file
from mmgslora.records.training_cost import training_cost
from mmgslora.report.certificate import requests_of
from mmgslora.report.charts import forgetting_figure, write_image
from mmgslora.report.format import terminal
from mmgslora.report.table import forgetting_table, summary_lines
from mmgslora.tuning import Tuner


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


def _hash(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def _merged(work_dir: str, task: int) -> dict[str, str | None]:
    """The merged checkpoint whose numbers these are, by the hash of the file."""
    path = merged_file(task)
    return dict(path=path, sha256=_hash(Path(work_dir, path)))


def _with_type(part: Method | Tuner) -> dict[str, Any]:
    return dict(type=type(part).__name__, **part.settings())


def _schedule(runner) -> dict[str, Any]:
    """How a task was trained; the learning rates are those a task begins with, per group."""
    loop = runner.train_loop
    groups = runner.optim_wrapper.optimizer.param_groups
    return dict(
        epochs_per_task=loop.epochs_per_task,
        steps_per_task=runner.cfg.train_cfg.get('steps_per_task'),
        served=loop.served and loop.served.settings(),
        optimizer=type(runner.optim_wrapper.optimizer).__name__,
        lr=sorted({group.get('initial_lr', group['lr']) for group in groups}),
        batch_size=loop.dataloader.batch_size,
        processes=get_world_size(),
        data_ratio=loop.views.data_ratio if loop.views.few_shot is None else None,
        min_images=loop.views.min_images if loop.views.few_shot is None else None,
        few_shot=loop.views.few_shot,
        by_class=loop.dataloader.sampler.by_class,
        redraw=loop.views.redraw,
    )


def _from_here(path: str | None) -> str | None:
    """The path as a user would type it, so that records do not depend on the machine."""
    return path and os.path.relpath(path)


@HOOKS.register_module()
class RecordHook(Hook):
    """Writes ``forgetting.json`` and ``forgetting.png`` after every task, a table at the end.

    Beside the numbers the record names family, method, LoRA and schedule with their resolved
    settings, the split that was measured on, and whether the run seals.

    The finished tasks are kept in the message hub, so that a resumed run goes on with the record
    that belongs to its checkpoint. What the config says of requests and thresholds stands in the
    record, so that a report needs no config.

    Raises:
        ForgettingError: ``requests`` or ``thresholds`` of the config are not what they must be.
    """

    # After the merged file is written, before anything is drawn.
    priority = 'BELOW_NORMAL'

    def before_run(self, runner) -> None:
        requests_of(runner.cfg.get('requests'), len(runner.train_loop.protocol))
        limits_of(runner.cfg.get('thresholds'))

    def before_train(self, runner) -> None:
        # What load_from names is loaded, and therefore here, even if it was at an address. A run
        # that is resumed has a checkpoint of its own to start from.
        if runner.cfg.get('load_from') and not runner.cfg.get('resume'):
            named, hub = str(runner.cfg.load_from), runner.message_hub
            original = local_path(named)
            hub.update_info('original', original)
            hub.update_info('original_url', None if named == original else named)
            hub.update_info('original_sha256', _hash(Path(original)))
            hub.update_info('original_training', training_cost(original))

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
            **{'groups': {}, 'zero_group_ratio': None, **hub.get_info('method_summary')},
            trainable_params=trainable,
            total_params=total,
            train_images=dict(forget=loop.views.num_forget, retain=loop.views.num_retain),
            few_shot=_few_shot(loop.views),
            steps=loop.steps_done,
            ended=loop.ended,
            prepare_seconds=hub.get_info('prepare_seconds'),
            train_seconds=hub.get_info('train_seconds'),
            eval_seconds=hub.get_info('eval_seconds'),
            merged=_merged(runner.work_dir, partition.task),
        )
        done = [t for t in hub.get_info('finished_tasks', []) if t['task'] < partition.task]
        hub.update_info('finished_tasks', [*done, task])
        record = self.record(runner)
        path = Path(runner.work_dir, 'forgetting.json')
        write_text(path, json.dumps(record, indent=1))
        write_image(path.with_suffix('.png'), lambda: forgetting_figure(record))

    @master_only
    def after_train(self, runner) -> None:
        record = self.record(runner)
        console = terminal()
        console.print(forgetting_table(record))
        for line in summary_lines(record):
            console.print(line)
        console.print(f'Results: {_from_here(runner.work_dir)}')

    def record(self, runner) -> dict:
        """The content of ``forgetting.json``."""
        loop, hub = runner.train_loop, runner.message_hub
        protocol, model = loop.protocol, loop.model
        return dict(
            config=_from_here(runner.cfg.filename) or runner.experiment_name,
            seed=runner.seed,
            family=model.model_key,
            method=_with_type(model.method),
            tune=_with_type(model.tune),
            schedule=_schedule(runner),
            split=loop.evaluate_on,
            seal=loop.seal,
            original=hub.get_info('original'),
            original_url=hub.get_info('original_url'),
            original_sha256=hub.get_info('original_sha256'),
            original_training=hub.get_info('original_training'),
            protocol=dict(tasks=list(map(list, protocol.tasks)), missing=list(protocol.missing)),
            requests=requests_of(runner.cfg.get('requests'), len(protocol)),
            thresholds=runner.cfg.get('thresholds'),
            audit=runner.cfg.get('audit'),
            images=hub.get_info('before_after', {}).get('rule'),
            versions=versions(),
            pretrained=_nest(hub.get_info('pretrained')),
            tasks=hub.get_info('finished_tasks', []),
        )
