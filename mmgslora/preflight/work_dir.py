"""The folder of a run: whose it is, what lies in it, and whether the run fits on its disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from mmgslora.atomic import write_text
from mmgslora.preflight.plan import Plan, as_mapping
from mmgslora.preflight.resume import HUB_KEY, checkpoints_in, differences, made_with

LOCK = 'run.lock'
"""Names the process that writes to a work_dir; there as long as the run is not finished."""

# Where each launcher says the rank before the processes have met.
_RANK = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
_DRAFT = re.compile(r'\..+\.[0-9a-f]{32}(\.\w+)?|\.(epoch|iter)_\d+\.pth|\.\w+-\w{8}\.png')


def holder(plan: Plan) -> Iterator[str]:
    """No other process writes to the work_dir.

    Looked at first, before its files are read: a run that is about to end replaces them while the
    checks go on, and would be gone at their end.
    """
    found = _holder(plan.work_dir) if is_first(plan.cfg) else None
    if found is not None and _is_another_live_process(found):
        yield (
            f'Process {found["pid"]} on {found["host"]} is writing to {str(plan.work_dir)!r}; wait '
            'for its end, or give another --work-dir. If there is no such process, delete '
            f'{LOCK!r} there.'
        )


def work_dir(plan: Plan) -> Iterator[str]:
    """The work_dir can be written to, no other process does by now, and no other run lies in it."""
    folder = plan.work_dir
    if not is_first(plan.cfg):
        return
    if folder.exists() and not folder.is_dir():
        yield f'The work_dir {str(folder)!r} is a file; give a folder.'
        return
    there = nearest_there(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield f'The work_dir {str(folder)!r} cannot be written to: {str(there)!r} is read-only.'
        return
    if held := list(holder(plan)):  # meanwhile
        yield from held
        return
    if not plan.cfg.get('resume'):
        yield from _another_run(plan, _holder(folder))


def nearest_there(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(x for x in (path, *path.absolute().parents) if x.exists())


def is_first(cfg: Config) -> bool:
    """Whether this process, of several of one run, is the one that writes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get(_RANK.get(cfg.get('launcher'), ''), '0') == '0'


def disk_space(plan: Plan) -> Iterator[str]:
    """What the run will write fits on the disk of its work_dir."""
    weights = size_of(plan.model.plain_model.state_dict())
    loop, tasks = plan.plain['train_cfg'], len(plan.protocol)
    kept = kept_checkpoints(plan.plain, tasks * loop['epochs_per_task'])
    files = tasks * (2 if loop.get('seal') else 1) + kept + 1
    free = shutil.disk_usage(nearest_there(plan.work_dir)).free
    if files * weights > free:
        yield (
            f'The run writes about {files * weights / 1e9:.1f} GB, and the disk of '
            f'{str(plan.work_dir)!r} has {free / 1e9:.1f} GB free; make room, or give another '
            '--work-dir.'
        )


def size_of(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state dict."""
    return sum(x.numel() * x.element_size() for x in state.values())


def kept_checkpoints(cfg: Mapping[str, Any], epochs: int) -> int:
    """How many checkpoints to resume from a run of so many epochs leaves."""
    saving = as_mapping(as_mapping(cfg.get('default_hooks')).get('checkpoint'))
    written, most = epochs // saving.get('interval', 1), saving.get('max_keep_ckpts', -1)
    return written if most < 0 else min(most, written)


def hold(folder: Path, made: Mapping[str, Any]) -> None:
    """Write down that this process writes to a work_dir; what a dead process left is taken over.

    Args:
        folder: The work_dir.
        made: What :func:`~mmgslora.preflight.resume.made_with` says of the run.
    """
    holder = dict(pid=os.getpid(), host=socket.gethostname(), began=_began(os.getpid()))
    write_text(folder / LOCK, json.dumps({**holder, HUB_KEY: made}))
    for inner in ('', 'adapters/', 'merged/', 'sealed/', 'requests/*/'):
        for path in folder.glob(f'{inner}.*'):  # what a kill left half written
            if _DRAFT.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def release(folder: Path) -> None:
    """The run is finished: its work_dir belongs to nobody."""
    holder = _holder(folder)
    if holder is not None and holder['pid'] == os.getpid():
        (folder / LOCK).unlink()


def _another_run(plan: Plan, holder: Mapping[str, Any] | None) -> Iterator[str]:
    """A new run must not mix its files with those of an earlier one."""
    folders = ('adapters/task_*', 'merged/task_*.pth', 'sealed/task_*.pth')
    patterns = ('forgetting.json', 'ledger.jsonl', *folders)
    found = {file.name for pattern in patterns for file in plan.work_dir.glob(pattern)}
    checkpoints = checkpoints_in(plan.work_dir)
    if not found and not (holder and checkpoints):
        return
    names = sorted({name.removesuffix('.pth') for name in found}) or [checkpoints[0].name]
    if checkpoints:
        advice = 'go on with it with --resume, or give this run another --work-dir.'
    elif holder is None:
        advice = 'it has no checkpoint to resume, so give this run another --work-dir.'
    elif plan.restart:
        # Killed before its first checkpoint: it starts again, and writes the same files anew.
        now = json.loads(json.dumps(made_with(plan.cfg, plan.protocol)))
        yield from differences(holder[HUB_KEY], now)
        return
    else:
        advice = (
            'it was killed before its first checkpoint, so start it again with --resume, or give '
            'this run another --work-dir.'
        )
    yield f'{str(plan.work_dir)!r} already holds a forgetting run ({", ".join(names)}); {advice}'


def _holder(folder: Path) -> dict[str, Any] | None:
    """What the lock file says; None where there is none, or none that can be read."""
    try:
        content = json.loads((folder / LOCK).read_text(encoding='utf-8'))
        return content if {'pid', 'host', 'began', HUB_KEY} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_another_live_process(holder: Mapping[str, Any]) -> bool:
    if holder['host'] != socket.gethostname():
        return True  # nothing can be known of it from here
    if holder['pid'] == os.getpid():
        return False
    try:
        os.kill(holder['pid'], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # alive, of another user
    return holder['began'] == _began(holder['pid'])


def _began(pid: int) -> str | None:
    """When a process began, where the system says so: numbers of processes are used again.

    None of one that has ended and that its parent has not asked after, as in a container whose
    first process never does: it keeps its number.
    """
    try:
        state, *facts = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return None if state in 'ZX' else facts[18]
    except (OSError, IndexError, ValueError):
        return None
