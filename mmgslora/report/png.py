"""Writing a figure so that a reader never meets half a file."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure
from mmengine.logging import print_log


@contextmanager
def drawing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong within costs this image, with one line in the log, and nothing else."""
    try:
        yield
    except Exception as error:  # fonts, sizes, names, files: it can fail in any way
        why = ' '.join(str(error).split()) or type(error).__name__
        print_log(f'{path} was not drawn: {why}', logger='current', level=logging.WARNING)


def write_png(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> Path:
    """Save the figure under a temporary name in the same folder, then put it in place.

    Whatever stops the writing, ``path`` holds either its old content or the whole new
    picture.

    Args:
        figure: What to draw.
        path: Where the PNG goes; its folder is made if needed.
        dpi: Pixels per inch of the figure.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.stem}-', suffix='.png')
    os.close(handle)
    unfinished = Path(name)
    try:
        figure.savefig(unfinished, dpi=dpi, format='png')
        # mkstemp lets only the owner read; a report is for everyone the folder is for.
        unfinished.chmod(0o666 & ~_umask())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
