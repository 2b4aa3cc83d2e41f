"""What a checkpoint's training took, as the checkpoint itself says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmgslora.errors import ForgettingError
from mmgslora.loading import read_checkpoint


def training_cost(path: str | Path) -> dict[str, Any] | None:
    """Steps of a training, and their seconds where MMEngine's log has them all.

    Args:
        path: A training checkpoint.

    Returns:
        ``steps`` and ``seconds``, the latter None where iterations were not timed or were logged
        by several runs; None for a file that is no training checkpoint.
    """
    if not Path(path).is_file():  # no address is read a second time for this
        return None
    try:
        content = read_checkpoint(str(path))
    except ForgettingError:  # whoever loads the weights says so
        return None
    steps = (content.get('meta') or {}).get('iter')
    if not isinstance(steps, int) or steps < 1:
        return None
    times = ((content.get('message_hub') or {}).get('log_scalars') or {}).get('train/time')
    seconds = None if times is None else [float(value) for value in times.data[0]]
    whole = seconds is not None and len(seconds) == steps
    return dict(steps=steps, seconds=sum(seconds) if whole else None)
