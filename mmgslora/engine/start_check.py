"""What is checked of a run before anything is written: its data, its work_dir, its start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, find_latest_checkpoint

from mmgslora.datasets.files import check_evaluator, check_files
from mmgslora.datasets.protocol import Protocol
from mmgslora.errors import ForgettingError

HUB_KEY = 'made_with'
"""Where the loop keeps, in the message hub, what :func:`made_with` says of a run."""

# What a run keeps from its first to its last task; dicts are compared setting by setting.
_KEPT = (
    'model.method',
    'model.tune',
    'train_cfg.epochs_per_task',
    'train_cfg.steps_per_task',
    'train_cfg.evaluate_on',
    'train_dataloader.batch_size',
    'train_dataloader.dataset.data_ratio',
    'train_dataloader.dataset.few_shot',
    'train_dataloader.dataset.seed',
    'optim_wrapper',
    'param_scheduler',
    'randomness.seed',
)


def check_start(cfg: Config) -> tuple[str, ...]:
    """Check what a forgetting run needs to begin, or to go on. Nothing is written.

    ``tools/train.py`` asks before MMEngine's Runner writes its config into the work_dir; the loop
    asks again, for other scripts. Checkpoints behind an address are not looked into.

    Args:
        cfg: The whole config, with ``work_dir``. One of another training passes.

    Returns:
        The classes that the model to start from, or the run to go on with, had forgotten before
        the first task of the protocol.

    Raises:
        ForgettingError: A data file is missing or does not fit the classes, an evaluator reads
            another file than its data loader, the work_dir holds another run, the checkpoint does
            not exist, or it was made with other settings or other tasks than the run is to be
            resumed with.
    """
    if (cfg.get('train_cfg') or {}).get('type') != 'ContinualForgettingLoop':
        return ()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        check_files(cfg.train_dataloader.dataset)
        for split in ('val', 'test'):
            loader = cfg.get(f'{split}_dataloader')
            if loader:
                check_files(loader.dataset)
                check_evaluator(cfg.get(f'{split}_evaluator'), loader.dataset, split)
    if not cfg.get('resume'):
        _check_work_dir(Path(cfg.work_dir))
        return forgotten_in(cfg.get('load_from'))
    path = cfg.get('load_from') or find_latest_checkpoint(cfg.work_dir)
    checkpoint = _load(path)
    return () if checkpoint is None else _check_resume(cfg, path, checkpoint)


def forgotten_in(path: str | None) -> tuple[str, ...]:
    """The classes that a run of ours has made a merged checkpoint forget; empty for any other.

    Raises:
        ForgettingError: The file does not exist.
    """
    meta = (_load(path) or {}).get('meta') or {}
    return tuple(meta.get('forgotten', ()))


def made_with(cfg: Config, protocol: Protocol) -> dict[str, Any]:
    """What a later ``--resume`` is compared with, as plain values for a checkpoint."""
    return dict(
        settings=_settings(cfg),
        tasks=[list(task) for task in protocol.tasks],
        missing=list(protocol.missing),
        forgotten=list(protocol.forgotten),
        classes=list(protocol.classes),
        category_ids=protocol.category_ids,
    )


def _load(path: str | None) -> dict | None:
    if not path or '://' in path:
        return None
    if not Path(path).is_file():
        raise ForgettingError(
            f'The checkpoint to start from, {path!r}, does not exist; '
            'train the detector first, or set load_from.'
        )
    return CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')


def _check_work_dir(work_dir: Path) -> None:
    """A new run must not mix its files with those of an earlier one."""
    patterns = ('forgetting.json', 'adapters/task_*', 'merged/task_*.pth', 'sealed/task_*.pth')
    found = {file.name for pattern in patterns for file in work_dir.glob(pattern)}
    if not found:
        return
    names = sorted({name.removesuffix('.pth') for name in found})
    if find_latest_checkpoint(str(work_dir)):
        advice = 'go on with it with --resume, or give this run another --work-dir.'
    else:
        advice = 'it has no checkpoint to resume, so give this run another --work-dir.'
    raise ForgettingError(
        f'{str(work_dir)!r} already holds a forgetting run ({", ".join(names)}); {advice}'
    )


def _check_resume(cfg: Config, path: str, checkpoint: dict) -> tuple[str, ...]:
    before = checkpoint.get('message_hub', {}).get('runtime_info', {}).get(HUB_KEY)
    if before is None:
        raise ForgettingError(
            f'{path!r} is no checkpoint of a forgetting run, so there is nothing to resume; '
            'leave --resume out and set load_from to start from it.'
        )
    protocol = Protocol(
        before['classes'],
        category_ids=before['category_ids'],
        forgotten=before['forgotten'],
        **cfg.train_cfg.protocol,
    )
    now = made_with(cfg, protocol)
    tasks = before['tasks']
    if now['tasks'][: len(tasks)] != tasks:
        new = [name for task in now['tasks'] for name in task if name not in sum(tasks, [])]
        example = json.dumps([*tasks, new or ['another class']])
        raise ForgettingError(
            f'The run to resume has the tasks {json.dumps(tasks)} and the config now says '
            f'{json.dumps(now["tasks"])}; keep the tasks it has and put new ones behind them, '
            f'train_cfg.protocol.tasks={example}.'
        )
    old = {**before['settings'], 'train_cfg.protocol.missing': before['missing']}
    new = {**now['settings'], 'train_cfg.protocol.missing': now['missing']}
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        differences = '; '.join(
            f'{key} was {old.get(key, "not set")!r} and is {new.get(key, "not set")!r} now'
            for key in changed
        )
        raise ForgettingError(
            f'A resumed run keeps the settings it began with, but {differences}. Take them back, '
            'or start a run of its own: another --work-dir, and load_from=merged/task_XX.pth of '
            'this one.'
        )
    return tuple(before['forgotten'])


def _settings(cfg: Config) -> dict[str, Any]:
    # Through JSON: a tuple in a config file is the list on a command line.
    plain = json.loads(json.dumps(cfg.to_dict(), default=str))
    found = {}
    for path in _KEPT:
        value = plain
        for part in path.split('.'):
            value = value.get(part) if isinstance(value, dict) else None
        found.update(_leaves(path, value))
    return found


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f'{path}.{key}', inner)
    elif value is not None:
        yield path, value
