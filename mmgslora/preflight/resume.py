"""A run that goes on: from which file, and whether it is still the same run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from safetensors import SafetensorError, safe_open

from mmgslora.datasets.protocol import Protocol
from mmgslora.errors import ForgettingError
from mmgslora.loading import read_checkpoint
from mmgslora.preflight.plan import Plan
from mmgslora.records.ledger import Ledger
from mmgslora.records.record import adapter_folder, merged_file

HUB_KEY = 'made_with'
"""Where the loop keeps, in the message hub, what :func:`made_with` says of a run."""

# What a run keeps from its first to its last task; dicts are compared setting by setting.
_KEPT = (
    'model.method',
    'model.tune',
    'train_cfg.epochs_per_task',
    'train_cfg.steps_per_task',
    'train_cfg.served',
    'train_cfg.evaluate_on',
    'train_dataloader.batch_size',
    'train_dataloader.sampler.by_class',
    'train_dataloader.dataset.data_ratio',
    'train_dataloader.dataset.min_images',
    'train_dataloader.dataset.few_shot',
    'train_dataloader.dataset.seed',
    'train_dataloader.dataset.redraw',
    'optim_wrapper',
    'param_scheduler',
    'randomness.seed',
)


def checkpoints_in(work_dir: str | Path) -> list[Path]:
    """MMEngine's checkpoints that lie in a work_dir, the latest first.

    Not what ``last_checkpoint`` says: that file holds a path, which a copied or moved work_dir
    takes with it.
    """
    found = {}
    for path in Path(work_dir).glob('*.pth'):
        number = re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name)
        if number and path.is_file():
            found[path] = int(number[1])
    return sorted(found, key=found.__getitem__, reverse=True)


def resume_in(cfg: Config, wish: str | None) -> bool:
    """Put what ``--resume`` asks for into a config.

    Args:
        cfg: The config, with ``work_dir``.
        wish: None, the path of a checkpoint, or 'auto' for the latest one of the work_dir.

    Returns:
        Whether the run starts again from ``load_from``, having no checkpoint yet.
    """
    if wish is None:
        return False
    latest = checkpoints_in(cfg.work_dir) if wish == 'auto' else [wish]
    if latest:
        cfg.resume, cfg.load_from = True, str(latest[0])
    else:
        cfg.resume = False
    return not latest


def resume(plan: Plan) -> Iterator[str]:
    """The checkpoint to go on from is whole, of a forgetting run, and of this one."""
    if not plan.cfg.get('resume'):
        return
    path = plan.cfg.get('load_from') or next(map(str, checkpoints_in(plan.work_dir)), None)
    if path is None:
        yield (
            f'There is no checkpoint in {str(plan.work_dir)!r} to resume; leave resume out to '
            'start from load_from.'
        )
        return
    try:
        checkpoint = read_checkpoint(path, 'The checkpoint to resume')
    except ForgettingError as error:
        others = [file for file in checkpoints_in(Path(path).parent) if file != Path(path)]
        older = f'resume from {str(others[0])!r}, or ' if others else ''
        yield f'{error} To go on, {older}start again in another --work-dir.'
        return
    before = made_by(checkpoint)
    if before is None:
        yield (
            f'{path!r} is no checkpoint of a forgetting run, so there is nothing to resume; '
            'leave --resume out and set load_from to start from it.'
        )
        return
    for task in Ledger(plan.work_dir).taken_back[-1:]:
        yield (
            f'Request {task} was taken back, and {path!r} still has it; start a run of its own '
            'from the last merged/without_XX.pth (load_from) in another --work-dir.'
        )
    plan.forgotten = tuple(before['forgotten'])
    yield from differences(before, made_with(plan.cfg, plan.protocol))
    yield from _lost_files(plan, checkpoint)


def made_by(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :func:`made_with` said of the run that saved a training checkpoint; None of others."""
    return (checkpoint.get('message_hub') or {}).get('runtime_info', {}).get(HUB_KEY)


def made_with(cfg: Config, protocol: Protocol) -> dict[str, Any]:
    """What a later ``--resume`` is compared with, as plain values for a checkpoint."""
    # Through JSON: a tuple in a config file is the list on a command line.
    plain = json.loads(json.dumps(cfg.to_dict(), default=str))
    return dict(
        settings=_settings(plain),
        also=_also(plain),
        tasks=[list(task) for task in protocol.tasks],
        missing=list(protocol.missing),
        forgotten=list(protocol.forgotten),
        classes=list(protocol.classes),
        category_ids=protocol.category_ids,
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what keeps two results of :func:`made_with` from being one run."""
    tasks = before['tasks']
    if now['classes'] != before['classes']:
        yield (
            f'The run to resume has the classes {", ".join(before["classes"])} and the data now '
            f'have {", ".join(now["classes"])}; resume it with the data it began with.'
        )
    if now['tasks'][: len(tasks)] != tasks:
        new = [name for task in now['tasks'] for name in task if name not in sum(tasks, [])]
        example = json.dumps([*tasks, new or ['another class']])
        yield (
            f'The run to resume has the tasks {json.dumps(tasks)} and the config now says '
            f'{json.dumps(now["tasks"])}; keep the tasks it has and put new ones behind them, '
            f'train_cfg.protocol.tasks={example}.'
        )
    also = before.get('also', now['also'])  # checkpoints of earlier versions do not say it
    old = {**before['settings'], **also, 'train_cfg.protocol.missing': before['missing']}
    new = {**now['settings'], **now['also'], 'train_cfg.protocol.missing': now['missing']}
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        said = '; '.join(
            f'{key} was {old.get(key, "not set")!r} and is {new.get(key, "not set")!r} now'
            for key in changed
        )
        yield (
            f'A resumed run keeps the settings it began with, but {said}. Take them back, or '
            'start a run of its own: another --work-dir, and load_from=merged/task_XX.pth of this '
            'one.'
        )


def _lost_files(plan: Plan, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Files of the finished part that are gone or broken: nothing would write them again."""
    lost = []
    for task in checkpoint['message_hub']['runtime_info'].get('finished_tasks', []):
        merged, adapter = merged_file(task['task']), adapter_folder(task['task'])
        if not _whole_checkpoint(plan.work_dir / merged):
            lost.append(merged)
        if not _whole_folder(plan.work_dir / adapter):
            lost.append(adapter)
    if lost:
        yield (
            f'{" and ".join(lost)} of {str(plan.work_dir)!r} {"are" if lost[1:] else "is"} missing '
            'or broken, and a resumed run does not make it again; put it back from a copy, or '
            'start again in another --work-dir.'
        )


def _whole_checkpoint(file: Path) -> bool:
    try:
        return 'state_dict' in read_checkpoint(str(file))
    except ForgettingError:
        return False


def _whole_folder(folder: Path) -> bool:
    """Whether there are tensors in a folder, and all of its files can be read."""
    try:
        for file in folder.glob('*.json'):
            json.loads(file.read_text(encoding='utf-8'))
        found = list(folder.glob('*.safetensors'))
        for file in found:
            with safe_open(file, framework='pt') as content:
                content.keys()
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(found)


def _settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for path in _KEPT:
        value = plain
        for part in path.split('.'):
            value = value.get(part) if isinstance(value, dict) else None
        found.update(_leaves(path, value))
    return found


def _also(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What else decides the steps of a task and what they leave, of settings that are in force."""
    found = {'train_dataloader.drop_last': bool(plain['train_dataloader'].get('drop_last'))}
    scaling = plain.get('auto_scale_lr') or {}
    if scaling.get('enable'):  # --auto-scale-lr
        found.update(_leaves('auto_scale_lr', scaling))
    for hook in plain.get('custom_hooks') or []:
        if 'AveragingHook' in str(hook['type']):
            found.update(_leaves('custom_hooks.AveragingHook', hook))
    return found


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f'{path}.{key}', inner)
    elif value is not None:
        yield path, value
