"""The ledger of a run: ``ledger.jsonl``, one line per event, each sealed by the next.

A line is JSON with sorted keys and no spaces. ``sha256`` is the hash of the line without it,
``previous`` the ``sha256`` of the line before. Whoever changes a byte must rewrite every line from
there on, and then the last hash, the *head*, is another one: keep it elsewhere, and even that is
seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmgslora.atomic import write_text
from mmgslora.env import versions
from mmgslora.errors import ForgettingError
from mmgslora.records.finished_run import sha256

FILE = 'ledger.jsonl'
EVENTS = ('forgotten', 'taken back', 'sealed', 'exported')
_BEFORE_THE_FIRST = '0' * 64


class Ledger:
    """The events of a run, in their order.

    Args:
        work_dir: The run's folder. Where it has no ledger yet there are no events.

    Attributes:
        path: The file.
        entries: What the lines say. ``event`` and ``number`` are in all of them, ``task``,
            ``classes``, ``files`` (role -> path and SHA-256), ``adapters``, ``base`` and
            ``result`` (fingerprints) and ``metrics`` where the event has them.

    Raises:
        ForgettingError: A line is not what it was when it was written, or one is missing.
    """

    def __init__(self, work_dir: str | os.PathLike[str]) -> None:
        self.work_dir = Path(work_dir)
        self.path = self.work_dir / FILE
        self._text = self._read()
        self.entries = self._checked()

    @property
    def head(self) -> str:
        """Hash of the last line: who knows it can tell whether any line was changed."""
        return self.entries[-1]['sha256'] if self.entries else _BEFORE_THE_FIRST

    @property
    def taken_back(self) -> list[int]:
        """Numbers of the requests that were taken back."""
        return [entry['task'] for entry in self.entries if entry['event'] == 'taken back']

    def last(self, event: str, task: int | None = None) -> dict[str, Any] | None:
        """The last line of an event, of a task if one is given; None if there is none."""
        for entry in reversed(self.entries):
            if entry['event'] == event and task in (None, entry.get('task')):
                return entry
        return None

    def append(self, event: str, **facts: Any) -> dict[str, Any]:
        """Write one more line; the file holds all of it, or is as it was.

        Args:
            event: One of :data:`EVENTS`.
            facts: What happened, as JSON can hold it (without NaN).

        Returns:
            The line as it stands in the ledger.

        Raises:
            ForgettingError: The event is unknown, or another command has written a line meanwhile.
        """
        if event not in EVENTS:
            raise ForgettingError(f'The event is {event!r}; it can be {", ".join(EVENTS)}.')
        if self._read() != self._text:
            raise ForgettingError(
                f'Another command has written to {self.path} since this one began, so its line '
                f'({event}) was not added; start it again.'
            )
        entry = dict(
            facts,
            event=event,
            number=len(self.entries) + 1,
            previous=self.head,
            time=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            versions=versions(),
            command=shlex.join(sys.argv),
        )
        entry['sha256'] = _hash(entry)
        text = self._text + _line(entry)
        write_text(self.path, text.decode())
        self._text, self.entries = text, [*self.entries, entry]
        return entry

    def _read(self) -> bytes:
        return self.path.read_bytes() if self.path.is_file() else b''

    def fact(self, path: str | os.PathLike[str]) -> dict[str, str]:
        """A file as the ledger names it: relative to the work_dir if it is in it, and its hash."""
        path = Path(path).resolve()
        inside = path.is_relative_to(self.work_dir.resolve())
        shown = os.path.relpath(path, self.work_dir.resolve() if inside else None)
        return dict(path=Path(shown).as_posix(), sha256=sha256(path))

    def _checked(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(self._text.splitlines(keepends=True), 1):
            try:
                entry = json.loads(line)
                whole = line == _line(entry) and entry['sha256'] == _hash(entry)
            except (ValueError, TypeError, KeyError):
                whole = False
            if not whole:
                raise self.misfit(number, 'it is not as it was written')
            previous = entries[-1]['sha256'] if entries else _BEFORE_THE_FIRST
            if entry['previous'] != previous or entry['number'] != number:
                raise self.misfit(
                    number,
                    'it does not follow the line before, which was changed, '
                    'moved, added or taken away',
                )
            entries.append(entry)
        return entries

    def misfit(self, number: int, why: str) -> ForgettingError:
        """The error that names the first line that does not fit."""
        return ForgettingError(f'Line {number} of {self.path} does not fit: {why}.')


def flat_metrics(task: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics of a record with one level: ``per_class/dog`` for ``per_class: {dog: ...}``.

    Args:
        task: A task of ``forgetting.json``, its ``pretrained``, or the metrics of an evaluator.

    Returns:
        Every number by its name, None for NaN.
    """
    found: dict[str, float | None] = {}
    for key, value in task.items():
        if isinstance(value, Mapping):
            found.update({f'{key}/{name}': number for name, number in flat_metrics(value).items()})
        else:
            found[key] = None if value is None or value != value else float(value)
    return found


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(
        entry, sort_keys=True, separators=(',', ':'), ensure_ascii=True, allow_nan=False
    )
    return f'{text}\n'.encode()


def _hash(entry: Mapping[str, Any]) -> str:
    content = {key: value for key, value in entry.items() if key != 'sha256'}
    return hashlib.sha256(_line(content)).hexdigest()
