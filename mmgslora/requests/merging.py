"""Adapters merged by hand into a new file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmgslora.lora.stored import StoredAdapter
from mmgslora.requests.checkpoint import (
    read_checkpoint,
    refuse_to_overwrite,
    write_checkpoint,
)
from mmgslora.requests.sequence import RequestSequence


def merge(sequence: RequestSequence, tasks: Sequence[int], out: str | Path) -> Path:
    """Write the original with the adapters of these requests merged in, and no others.

    Raises:
        ForgettingError: ``out`` exists.
    """
    refuse_to_overwrite(out)
    write_checkpoint(out, sequence.state(tasks), sequence.meta(tasks))
    return Path(out)


def add(adapter: StoredAdapter, checkpoint: str | Path, out: str | Path) -> Path:
    """Write a copy of a plain checkpoint with one adapter merged in; the checkpoint stays.

    Raises:
        ForgettingError: ``out`` exists, or the adapter belongs to another model or is merged into
            this one already.
    """
    refuse_to_overwrite(out)
    base = read_checkpoint(checkpoint)
    classes = adapter.metadata.get('classes', [])
    forgotten = [*base['meta'].get('forgotten', ()), *classes]
    write_checkpoint(
        out, adapter.merged(base['state_dict']), dict(base['meta'], forgotten=forgotten)
    )
    return Path(out)
