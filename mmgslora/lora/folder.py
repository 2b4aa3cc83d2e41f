"""Writing what a task changed into a folder, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from mmgslora.atomic import replacing
from mmgslora.env import versions
from mmgslora.errors import ForgettingError

WEIGHTS = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'
CHANGED = 'changed.safetensors'
"""Instead of these two, where parameters themselves were trained: what they are now."""
METADATA = 'metadata.json'


def weights_of(folder: Path) -> str:
    """Name of the file with the tensors in a task's folder."""
    return CHANGED if (folder / CHANGED).is_file() else WEIGHTS


def write_folder(
    folder: str | Path,
    files: Mapping[str, bytes],
    metadata: Mapping[str, Any],
    base: str | None,
    result: str,
    also_named: Mapping[str, Sequence[str]],
    **facts: Any,
) -> None:
    """Write what a task changed, with what makes it trustworthy in ``metadata.json``.

    The folder appears under its name only when it is complete: a killed process leaves no
    folder or a whole one. One that is there already is replaced.

    Args:
        folder: Where to write. Folders above it are made.
        files: Content of the files by name.
        metadata: What the caller says of the task.
        base: Fingerprint of the model that the task began with; None if it is not known.
        result: Fingerprint of the model that folder and base make.
        also_named: From :func:`also_named`.
        facts: More for the metadata.

    Raises:
        ForgettingError: ``folder`` holds anything but such files.
    """
    folder = Path(folder).resolve()
    foreign = _foreign_files(folder)
    if foreign:
        raise ForgettingError(
            f'{folder} is not replaced by an adapter because it holds {foreign[0]!r}; give a '
            'new folder.'
        )
    content = dict(
        metadata,
        base=base,
        result=result,
        **facts,
        also_named=also_named,
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        versions=versions(),
        command=shlex.join(sys.argv),
    )
    with replacing(folder) as draft:
        draft.mkdir()
        for name, data in files.items():
            (draft / name).write_bytes(data)
        (draft / METADATA).write_text(json.dumps(content, indent=2) + '\n')


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    # Copies: safetensors refuses two names for one memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(copies, metadata={'format': 'pt'})


def also_named(model: nn.Module, keys: Sequence[str]) -> dict[str, list[str]]:
    """Further names of weights, in a model that holds one module in several places."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        names.setdefault(id(value), []).append(name)
    others = {key: [n for n in names[id(state[key])] if n not in keys] for key in keys}
    return {key: found for key, found in others.items() if found}


def _foreign_files(folder: Path) -> list[str]:
    if folder.is_dir():
        ours = {WEIGHTS, CONFIG, CHANGED, METADATA}
        return sorted(path.name for path in folder.iterdir() if path.name not in ours)
    return [folder.name] if folder.exists() else []
