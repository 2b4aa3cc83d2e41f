"""Writes what a finished task leaves behind: its adapter and the merged plain checkpoint."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.families.registry import FAMILIES
from mmgslora.records.record import adapter_folder, merged_file, sealed_file
from mmgslora.requests.checkpoint import write_checkpoint


@HOOKS.register_module()
class AdapterHook(Hook):
    """Saves ``adapters/task_XX/`` before a task is merged and ``merged/task_XX.pth`` after it.

    The merged file is a checkpoint of the plain model with its config in ``meta['cfg']``: a
    detector's is loaded by MMDetection with nothing of mmgslora. ``meta['forgotten']`` lists the
    classes that are gone, which a run that starts from the file leaves gone. Where the loop
    seals, there is the same as ``sealed/task_XX.pth`` with all classes that must be gone sealed.
    """

    @master_only
    def before_merge(self, runner) -> None:
        partition = ClassPartition.current()
        runner.train_loop.model.tune.save(
            Path(runner.work_dir, adapter_folder(partition.task)),
            metadata=dict(
                task=partition.task,
                classes=list(partition.forget),
                partition=asdict(partition),
                seed=runner.seed,
            ),
        )

    @master_only
    def after_forget_task(self, runner, metrics: dict) -> None:
        loop, partition = runner.train_loop, ClassPartition.current()
        self._save(runner, merged_file(partition.task))
        if loop.seal:
            gone = partition.labels('forget') + partition.labels('old')
            with loop.model.sealed(gone):
                names = list(partition.forget + partition.old)
                self._save(runner, sealed_file(partition.task), sealed=names)

    def _save(self, runner, file: str, **meta) -> None:
        partition = ClassPartition.current()
        state = runner.train_loop.model.tune.plain_state_dict()
        meta = dict(
            dataset_meta=dict(runner.train_loop.views.metainfo),
            cfg=_plain_config(runner),
            task=partition.task,
            forgotten=[*partition.old, *partition.forget],
            seed=runner.seed,
            **meta,
        )
        state = {key: value.cpu() for key, value in state.items()}
        write_checkpoint(Path(runner.work_dir, file), state, meta)


def _plain_config(runner) -> str:
    """What of a run's config describes the plain model, without the forgetting."""
    cfg, key = runner.cfg, runner.train_loop.model.model_key
    keys = ('default_scope', 'test_dataloader', 'test_evaluator', 'test_cfg', 'visualizer')
    plain = copy.deepcopy({key: cfg[key] for key in keys if key in cfg})
    FAMILIES[key].plain_config(plain, runner.train_loop.views.classes)
    return Config(dict(model=cfg.model[key], **plain)).pretty_text
