"""The next request, weeks later: a finished sequence goes on with one more task."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

from mmengine.config import Config

from mmgslora.errors import ForgettingError
from mmgslora.preflight.resume import checkpoints_in
from mmgslora.requests.measure import config_of
from mmgslora.requests.sequence import RequestSequence


def continued_config(
    work_dir: str | os.PathLike[str], forget: Sequence[str], cfg: Config | None = None
) -> Config:
    """The config that serves one more request on a finished sequence, in its work_dir.

    The run is resumed with a longer list of tasks: earlier classes stay old, the original that Drop
    is measured from, prototypes and record stay those of the first task, and the report covers all
    of them. Nothing in the work_dir has to be where it was trained; data paths are the config's.

    Args:
        work_dir: The run's folder, or a copy of it. It must hold its last ``epoch_*.pth``.
        forget: The classes to forget now.
        cfg: The run's config with changed data paths, say. Settings of the method and the
            schedule must be as they were. Defaults to None: the config in the work_dir.

    Returns:
        A config for MMEngine's Runner; the one given is left as it is.

    Raises:
        ForgettingError: No class is given, or one that a request has had; the sequence is not
            finished; a request was taken back; or the checkpoint to go on from is not there.
    """
    sequence = RequestSequence(work_dir)
    if not forget:
        raise ForgettingError('No class is given; name at least one to forget.')
    sequence.refuse_unfinished()
    if sequence.taken_back:
        raise ForgettingError(
            f'Request {sequence.taken_back[-1]} was taken back, and the training checkpoint still '
            f'has it; start a run of its own from {str(sequence.current_file)!r} (load_from) in '
            'another --work-dir: what is forgotten stays forgotten there.'
        )
    saved = checkpoints_in(sequence.work_dir)
    if not saved:
        raise ForgettingError(
            f'{str(work_dir)!r} holds no epoch_*.pth to go on from; start a run of its own from '
            'its last merged/task_XX.pth (load_from) in another --work-dir.'
        )
    cfg = config_of(sequence) if cfg is None else copy.deepcopy(cfg)
    protocol = sequence.run.record['protocol']
    tasks = list(protocol['tasks'])
    # Killed when its last request was in the record and not yet in a checkpoint, it goes on.
    epochs = cfg.train_cfg.epochs_per_task * len(tasks)
    if list(forget) != tasks[-1] or saved[0].name == f'epoch_{epochs}.pth':
        for name in forget:
            for task in sequence.tasks:
                if name in sequence.classes([task]):
                    raise ForgettingError(
                        f'Class {name!r} was forgotten by request {task} already.'
                    )
        tasks.append(list(forget))
    cfg.train_cfg.protocol = dict(tasks=tasks, missing=protocol.get('missing') or [])
    cfg.work_dir = str(work_dir)
    cfg.resume, cfg.load_from = True, str(saved[0])
    return cfg
