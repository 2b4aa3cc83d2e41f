"""Take a request back: the model without it, measured and recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmgslora.errors import ForgettingError
from mmgslora.lora import fingerprint
from mmgslora.records.record import adapter_folder
from mmgslora.requests.checkpoint import write_checkpoint
from mmgslora.requests.measure import measure
from mmgslora.requests.sequence import RequestSequence


def revoke(
    sequence: RequestSequence,
    task: int,
    cfg: Config | None = None,
    measure: Callable[..., dict[str, Any]] = measure,
) -> dict[str, Any]:
    """Rebuild the model from the original without one request, measure it, write it down.

    The result is ``merged/without_XX.pth``, with all requests that were taken back in its name.
    The files of the run stay; the class may be named again, so nothing has to be destroyed.

    Args:
        sequence: The requests.
        task: Number of the one to take back; any of those in force.
        cfg: The run's config. Defaults to None: the one in the work_dir.
        measure: What measures the file. Defaults to :func:`~mmgslora.requests.measure`.

    Returns:
        The line of the ledger.

    Raises:
        ForgettingError: The run is unfinished, the request was taken back already, the original is
            not here or is another model, or a later request cannot do without this one.
    """
    sequence.refuse_unfinished()
    if task in sequence.taken_back:
        raise ForgettingError(f'Request {task} was taken back already.')
    classes = sequence.classes([task])
    left = [other for other in sequence.in_force if other != task]
    state = sequence.state(left)
    gone = sorted({*sequence.taken_back, task})
    path = sequence.work_dir / 'merged' / f'without_{"_".join(f"{n:02d}" for n in gone)}.pth'
    write_checkpoint(path, state, sequence.meta(left))
    metrics = measure(sequence, path, left, cfg)
    fact = sequence.ledger.fact
    return sequence.ledger.append(
        'taken back',
        task=task,
        classes=classes,
        in_force=left,
        base=sequence.adapter(sequence.tasks[0]).metadata.get('base'),
        result=fingerprint(state),
        adapters=[adapter_folder(other) for other in left],
        files=dict(base=fact(sequence.base_file), merged=fact(Path(path))),
        metrics=metrics,
    )
