"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to the draft that is handed out; it takes the place of ``path`` at the end.

    Whatever stops the writing, ``path`` holds its old content or the new one, whole, and no draft
    is left unless the process was killed. The draft lies in the same folder, which is made if
    needed; its name starts with a dot and keeps the suffix.

    Args:
        path: A file, or a folder: make the draft a folder (``draft.mkdir()``) then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    draft = path.with_name(f'.{path.stem}.{name}{path.suffix}')
    old = path.with_name(f'.{path.stem}.{name}.old')
    try:
        yield draft
        if path.is_dir():  # no system call puts one folder in the place of another
            path.rename(old)
        draft.replace(path)
    finally:
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) that is whole or not there."""
    with replacing(path) as draft:
        draft.write_text(text, encoding='utf-8')
