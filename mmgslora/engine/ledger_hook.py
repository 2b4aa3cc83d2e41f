"""Keeps the ledger of a run: ``ledger.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgslora.atomic import write_text
from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.lora import fingerprint
from mmgslora.records.ledger import Ledger, flat_metrics
from mmgslora.records.record import adapter_folder, merged_file, sealed_file

_KEY = 'ledger_base'


@HOOKS.register_module()
class LedgerHook(Hook):
    """Writes a line for every request that was served, and one for every sealed file.

    ``requests/task_XX/`` holds what the line refers to and nothing else keeps: ``config.py``, the
    config as it was run, and ``data.json``, the ids of the images of both views.

    Raises:
        ForgettingError: The ledger was changed, or a resumed run has other weights than the
            ledger's last request had left.
    """

    # After the adapter, the merged file and the record are written.
    priority = 'LOW'

    @master_only
    def before_train(self, runner) -> None:
        loop, ledger = runner.train_loop, Ledger(runner.work_dir)
        if runner.epoch % loop.epochs_per_task:
            return  # in the middle of a task; the message hub knows how it began
        weights = fingerprint(loop.model.plain_model)
        entry = ledger.last('forgotten', runner.epoch // loop.epochs_per_task)
        if entry is not None and entry['result'] != weights:
            raise ForgettingError(
                f'The checkpoint to go on from has other weights than request {entry["task"]} had '
                f'left (line {entry["number"]} of {ledger.path}); put the file of the run back.'
            )
        runner.message_hub.update_info(_KEY, weights)

    @master_only
    def after_forget_task(self, runner, metrics: dict) -> None:
        loop, partition = runner.train_loop, ClassPartition.current()
        ledger, work_dir = Ledger(runner.work_dir), Path(runner.work_dir)
        result = fingerprint(loop.model.plain_model)
        adapter = adapter_folder(partition.task)
        files = _inputs(runner, ledger, partition)
        files['merged'] = ledger.fact(work_dir / merged_file(partition.task))
        for path in sorted((work_dir / adapter).iterdir()):
            files[f'adapter/{path.name}'] = ledger.fact(path)
        ledger.append(
            'forgotten',
            task=partition.task,
            classes=list(partition.forget),
            base=runner.message_hub.get_info(_KEY),
            result=result,
            adapters=[adapter],
            files=files,
            metrics=flat_metrics(metrics),
        )
        runner.message_hub.update_info(_KEY, result)
        if loop.seal:
            sealed = work_dir / sealed_file(partition.task)
            ledger.append(
                'sealed',
                task=partition.task,
                classes=[*partition.old, *partition.forget],
                files=dict(sealed=ledger.fact(sealed)),
            )


def _inputs(runner, ledger: Ledger, partition: ClassPartition) -> dict[str, Any]:
    """What a request was served with: config, images and the model before it."""
    views, hub = runner.train_loop.views, runner.message_hub
    folder = Path(runner.work_dir, 'requests', f'task_{partition.task:02d}')
    write_text(folder / 'config.py', runner.cfg.pretty_text)
    images = {side: views.image_ids(side) for side in ('forget', 'retain')}
    write_text(folder / 'data.json', json.dumps(dict(image_ids=images)) + '\n')
    files = dict(config=ledger.fact(folder / 'config.py'), data=ledger.fact(folder / 'data.json'))
    annotations = getattr(views.base, 'ann_file', None)
    if annotations and Path(annotations).is_file():
        files['annotations'] = ledger.fact(annotations)
    if partition.task > 1:
        files['base'] = ledger.fact(Path(runner.work_dir, merged_file(partition.task - 1)))
    elif hub.get_info('original') and hub.get_info('original_sha256'):
        # As the record has it: the file may have been read long ago.
        files['base'] = dict(path=hub.get_info('original'), sha256=hub.get_info('original_sha256'))
    return files
