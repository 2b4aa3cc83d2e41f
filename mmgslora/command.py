"""How the command lines end: one sentence for a mistake, one line for a stop, never a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mmgslora.errors import ForgettingError
from mmgslora.preflight.plan import reason


class Stopped(BaseException):
    """The process was asked to end (SIGTERM). Like KeyboardInterrupt it passes every except."""


@contextmanager
def plain_ending(
    debug: bool | None = None,
    stopped: Callable[[], str] = lambda: 'Stopped.',
    explain: Callable[[Exception], list[str]] | None = None,
) -> Iterator[None]:
    """Within, an error becomes its sentence and exit code 1, a stop one line and 130 or 143.

    Args:
        debug: Whether an error shows its traceback instead. Defaults to None: the command has no
            such flag.
        stopped: The line for Ctrl-C and SIGTERM. Defaults to saying just that.
        explain: Makes the sentences on an error that is no :class:`ForgettingError`. Defaults to
            None: the error itself.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cost the line
        print(f'\n{stopped()}', file=sys.stderr)
        _leave(130 if isinstance(stop, KeyboardInterrupt) else 143)
    except ForgettingError as error:
        if debug:
            raise
        _refuse(str(error).splitlines())
    except Exception as error:
        if debug:
            raise
        hint = '.' if debug is None else ' (--debug shows where).'
        _refuse(explain(error) if explain else [f'{reason(error)}{hint}'])
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _refuse(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f'error: {sentence}', file=sys.stderr)
    sys.exit(1)


def _leave(code: int) -> None:
    # Not sys.exit: threads and workers of a loader that is stopped half-way may not end by
    # themselves, and would print tracebacks of their own.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
