"""A config file and the command line's wishes, or one sentence on what is wrong with them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmgslora.errors import ForgettingError
from mmgslora.preflight.options import Options
from mmgslora.preflight.plan import reason
from mmgslora.preflight.settings import TOP_LEVEL


def add_config_arguments(
    parser: argparse.ArgumentParser, work_dir: str = 'folder for logs and results'
) -> None:
    """The arguments that every command with a config has, and ``--debug``.

    Args:
        parser: The parser to add them to.
        work_dir: Help text of ``--work-dir``.
    """
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help=work_dir)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        help='override settings of the config, e.g. train_cfg.epochs_per_task=2',
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def load_config(
    path: str, work_dir: str | None = None, options: Mapping[str, Any] | None = None
) -> Config:
    """A config file with the command line's wishes merged in.

    Args:
        path: The file.
        work_dir: As given on the command line. Defaults to None: the config's, or a folder below
            ``work_dirs`` that is named after the config.
        options: Settings by their dotted keys.

    Raises:
        ForgettingError: The file cannot be read as a config, or an option has no effect.
    """
    if not Path(path).is_file():
        raise ForgettingError(f'Config {path!r} does not exist; give the path of a config file.')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python, which can fail in any way
        raise ForgettingError(f'Config {path!r} cannot be read: {reason(error)}') from error
    if not cfg.to_dict():
        raise ForgettingError(f'Config {path!r} is empty; begin with one of those in configs/.')
    for key in options or {}:
        first = key.split('.')[0]
        if first not in TOP_LEVEL:
            near = difflib.get_close_matches(first, TOP_LEVEL, n=1)
            meant = f'; did you mean {near[0]!r}?' if near else '.'
            raise ForgettingError(
                f'--cfg-options {key} changes nothing: {first!r} is no setting of a run{meant}'
            )
    try:
        cfg.merge_from_dict(dict(options or {}))
    except Exception as error:
        raise ForgettingError(f'--cfg-options do not fit {path!r}: {reason(error)}') from error
    folder = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    cfg.work_dir = str(Path(folder).expanduser())  # no shell does it behind --work-dir=
    return cfg
