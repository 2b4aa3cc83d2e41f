"""A config file and the command line's wishes, or one sentence on what is wrong with them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from mmgslora.errors import ForgettingError
from mmgslora.preflight.plan import reason
from mmgslora.preflight.settings import TOP_LEVEL


class Options(DictAction):
    """``--cfg-options KEY=VALUE ...`` of MMEngine; what is no such pair is an error of use.

    Unlike MMEngine's, names keep their blanks (``[[traffic light]]``) and their leading zeros
    (``[[0000045]]``).
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            key, found, _ = value.partition('=')
            if not found or not key.strip('.'):
                parser.error(f'--cfg-options takes KEY=VALUE, such as train_cfg.seal=True: {value}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError, RecursionError) as error:
            parser.error(f'--cfg-options {" ".join(values)} cannot be read: {error}')

    @staticmethod
    def _parse_iterable(text: str) -> Any:
        """A number, True, False, None, text, or what stands in brackets or between commas."""
        bare = text.strip().strip('\'"')
        ends = bare[:1] + bare[-1:]
        bracketed = ends in ('[]', '()')
        if bracketed or ',' in bare:
            parts = _between_commas(bare[1:-1] if bracketed else bare)
            values = [Options._parse_iterable(part) for part in parts]
            return tuple(values) if ends == '()' else values
        parsed = DictAction._parse_int_float_bool(bare)
        return bare if isinstance(parsed, int) and str(parsed).lower() != bare.lower() else parsed


def _between_commas(text: str) -> list[str]:
    """The parts of a list without its brackets; lists within it stay whole."""
    parts, depth = [''], 0
    for character in text:
        depth += (character in '[(') - (character in '])')
        if depth < 0:
            break
        if character == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += character
    if depth:
        raise ValueError(f'brackets do not match in {text!r}')
    return parts if text.strip() else []


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
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    return cfg
