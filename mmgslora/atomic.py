"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
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
        draft.stat()  # what was never written takes the place of nothing
        if not (path.is_dir() and _exchanged(draft, path)):
            if path.is_dir():
                path.rename(old)
            draft.replace(path)
    except (OSError, RuntimeError) as error:
        raise naming(path, error) from None
    finally:
        if old.exists() and not path.exists():  # stopped between two renames
            old.rename(path)
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)


def drop_drafts(path: str | os.PathLike[str]) -> None:
    """Delete what killed processes left half written of a file, which nobody may be writing now."""
    path = Path(path)
    name = f'.{glob.escape(path.stem)}.{"[0-9a-f]" * 32}{glob.escape(path.suffix)}'
    for left in path.parent.glob(name):
        left.unlink(missing_ok=True)


def naming(path: str | os.PathLike[str], error: Exception) -> Exception:
    """What went wrong while a file was written, with its name: a full disk names none.

    ``torch.save`` says no more than "enforce fail", after the system's own error.
    """
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, OSError) and cause.errno is not None and cause.filename is None:
        return OSError(cause.errno, cause.strerror, str(path))
    return error


def _exchanged(draft: Path, path: Path) -> bool:
    """Let two folders change places in one step; False where the system has no such step.

    A rename takes the place of a file or of an empty folder alone. Linux's ``renameat2`` can also
    exchange two; without it a folder is away for the moment between two renames.
    """
    renameat2 = getattr(ctypes.CDLL(None), 'renameat2', None) if sys.platform == 'linux' else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(draft), here, os.fsencode(path), exchange) == 0


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) that is whole or not there."""
    with replacing(path) as draft:
        draft.write_text(text, encoding='utf-8')
