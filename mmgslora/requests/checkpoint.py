"""Plain checkpoints, read as data alone and written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgslora import loading
from mmgslora.atomic import replacing
from mmgslora.errors import ForgettingError
from mmgslora.families.checkpoint import fitting_weights
from mmgslora.families.registry import FAMILIES


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's ``state_dict`` and ``meta``, be it MMEngine's or a bare state dict.

    Raises:
        ForgettingError: See :func:`mmgslora.loading.read_checkpoint`.
    """
    content = loading.read_checkpoint(str(path))
    return dict(
        state_dict=dict(content.get('state_dict', content)), meta=dict(content.get('meta') or {})
    )


def plain_state(checkpoint: Mapping[str, Any], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain model's state dict of any checkpoint that a run can start from.

    In the types of the model, as a run has them: a file may hold the weights in half precision.

    Args:
        checkpoint: As from :func:`read_checkpoint`.
        like: State dict of the same plain model, for its names, shapes and types.

    Raises:
        ForgettingError: It is of another model.
    """
    state = checkpoint['state_dict']
    fitting = fitting_weights(state, like, 'model', added=lambda key: False, wrappers=FAMILIES)
    return {key: value.to(like[key].dtype) for key, value in fitting.items()}


def refuse_to_overwrite(out: str | Path) -> None:
    """No command writes over a file that is there.

    Raises:
        ForgettingError: ``out`` exists.
    """
    if Path(out).exists():
        raise ForgettingError(f'{str(out)!r} exists already; give the name of a new file.')


def write_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], meta: Mapping[str, Any] | None
) -> None:
    """Write a plain checkpoint; a killed process leaves the old file, or none, or the new one.

    Args:
        path: The file.
        state: State dict of the plain model.
        meta: What MMEngine's checkpoints say of it. None writes the bare state dict, as
            torchvision's are.
    """
    content = dict(state) if meta is None else dict(state_dict=dict(state), meta=dict(meta))
    # torch writes the name of a file into it, and the draft's is another one every time.
    with replacing(path) as draft, draft.open('wb') as file:
        torch.save(content, file)
