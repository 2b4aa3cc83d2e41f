"""Everything that a ledger claims, worked out again from the files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.lora import fingerprint
from mmgslora.lora.stored import StoredAdapter
from mmgslora.records.finished_run import find_file, read_json, sha256
from mmgslora.records.ledger import Ledger, flat_metrics
from mmgslora.records.record import tasks_of
from mmgslora.requests.checkpoint import plain_state, read_checkpoint

# Files from outside the run: another machine may not have them.
_OUTSIDE = ('base', 'annotations', 'exported')
_OF_WEIGHTS = ('base', 'merged', 'adapter/')


def verify(
    work_dir: str | Path, head: str | None = None, base: str | Path | None = None
) -> list[str]:
    """Check every line of a run's ledger against the files, from the first to the last.

    Of every line: its hash and that of the line before; the hash of every file, where no later
    line of the same event names the file again; that base and adapters still give the merged
    weights, bit for bit; and that the metrics are those of ``forgetting.json``.

    Args:
        work_dir: The run's folder.
        head: The hash that the last line must have, if one was kept elsewhere. Without it nobody
            can tell a ledger that was rewritten as a whole.
        base: Where the original model is. Defaults to None: where the ledger says.

    Returns:
        What was checked and what could not be, one sentence each.

    Raises:
        ForgettingError: There is no ledger, ``base`` does not exist, or a line does not fit: the
            first one, and why.
    """
    ledger = Ledger(work_dir)
    if not ledger.entries:
        raise ForgettingError(f'{str(work_dir)!r} has no ledger ({ledger.path.name}).')
    if base is not None and not Path(base).is_file():
        raise ForgettingError(f'The original model {str(base)!r} does not exist.')
    check = _Check(ledger, base)
    for entry in ledger.entries:
        try:
            check.line(entry)
        except ForgettingError as error:
            raise ledger.misfit(entry['number'], str(error).rstrip('.')) from error
    check.record()
    lines = len(ledger.entries)
    if head is not None and head != ledger.head:
        kept = next((e['number'] for e in ledger.entries if e['sha256'] == head), None)
        how = 'lines were taken away or rewritten'
        if kept:  # as every request, export and seal does
            how = f'that is line {kept}, which is as it was then; {lines - kept} came after it'
        raise ledger.misfit(
            lines, f'its hash is {ledger.head} and not the one that was kept, {head}: {how}'
        )
    known = 'is the one that was kept' if head else 'should be kept elsewhere'
    return [
        f'{ledger.path}: {lines} line{"s" if lines > 1 else ""} as written.',
        *check.found,
        f'Head: {ledger.head}, which {known}.',
    ]


class _Check:
    def __init__(self, ledger: Ledger, base: str | Path | None) -> None:
        self.ledger, self.work_dir = ledger, ledger.work_dir
        self.base = base and Path(base)
        self.found: list[str] = []
        # By event and path: a resumed run replaces what it had not finished, and writes the same
        # kind of line. No export, say, excuses that a merged file was changed.
        self.latest: dict[tuple[str, str], str] = {}
        self.to_destroy: set[str] = set()
        for entry in ledger.entries:
            for file in entry.get('files', {}).values():
                self.latest[entry['event'], file['path']] = file['sha256']
            self.to_destroy.update(entry.get('to_destroy', ()))

    def line(self, entry: Mapping[str, Any]) -> None:
        files = {
            role: file
            for role, file in entry.get('files', {}).items()
            if self.latest[entry['event'], file['path']] == file['sha256']
        }
        found = {role: self._file(entry['number'], role, file) for role, file in files.items()}
        here = {role: path for role, path in found.items() if path is not None}
        # Of a request that was served anew the weights are others now; notes beside them are not.
        of_weights = [x for x in entry.get('files', {}) if x.startswith(_OF_WEIGHTS)]
        if 'result' in entry and files.keys() >= {*of_weights}:
            self._weights(entry, here)

    def _file(self, number: int, role: str, file: Mapping[str, str]) -> Path | None:
        """Where a file is, its hash checked; None where it is not here and need not be."""
        shown = file['path']
        original = self.ledger.entries[0].get('files', {}).get('base')
        moved = self.base if original and file['sha256'] == original['sha256'] else None
        path = moved or find_file(shown, self.work_dir)
        if path is None:
            if self.to_destroy & {shown, Path(shown).parent.as_posix()}:
                self.found.append(f'Line {number}: {shown} was destroyed, as an export asked for.')
            elif role in _OUTSIDE:
                self.found.append(f'Line {number}: {shown} is not here, so it was not compared.')
            else:
                raise ForgettingError(f'{shown} is missing')
            return None
        if sha256(path) != file['sha256']:
            raise ForgettingError(f'{shown} is another file than the one recorded ({role})')
        return path

    def _weights(self, entry: Mapping[str, Any], here: Mapping[str, Path]) -> None:
        number = entry['number']
        if 'merged' not in here:
            return
        merged = read_checkpoint(here['merged'])['state_dict']
        if fingerprint(merged) != entry['result']:
            raise ForgettingError('the merged weights do not have the fingerprint recorded')
        adapters = [self.work_dir / folder for folder in entry.get('adapters', ())]
        base = here.get('base')
        if base is None or not all(folder.is_dir() for folder in adapters):
            self.found.append(
                f'Line {number}: the base or an adapter is not here, so that the merged weights '
                'were not made again.'
            )
            return
        again = self._made_again(entry, plain_state(read_checkpoint(base), merged), adapters)
        if fingerprint(again) != entry['result']:
            raise ForgettingError('base and adapters do not give the merged weights recorded')
        self.found.append(
            f'Line {number}: base and {len(adapters)} adapter{"s" if len(adapters) != 1 else ""} '
            f'give {entry["files"]["merged"]["path"]}, bit for bit.'
        )

    @staticmethod
    def _made_again(
        entry: Mapping[str, Any], state: dict[str, Tensor], adapters: list[Path]
    ) -> dict[str, Tensor]:
        if entry.get('base') not in (None, fingerprint(state)):
            raise ForgettingError('the base does not have the fingerprint recorded')
        for folder in adapters:
            state = StoredAdapter.read(folder).merged(state, own_base=entry['event'] == 'forgotten')
        return state

    def record(self) -> None:
        """The ledger's requests and numbers are those of ``forgetting.json``."""
        path = self.work_dir / 'forgetting.json'
        if not path.is_file():
            self.found.append('forgetting.json is not here, so the metrics were not compared.')
            return
        lines = {e['task']: e for e in self.ledger.entries if e['event'] == 'forgotten'}
        tasks = tasks_of(read_json(path))
        for number in lines.keys() - {task['task'] for task in tasks}:
            why = f'it is of request {number}, which forgetting.json does not have'
            raise self.ledger.misfit(lines[number]['number'], why)
        for task in tasks:
            number = task['task']
            if number not in lines:
                raise self.ledger.misfit(
                    len(self.ledger.entries) + 1,
                    f'forgetting.json has request {number}, and there is no line of it',
                )
            entry = lines[number]
            recorded = flat_metrics({**task['metrics'], 'per_class': task['per_class']})
            if entry['classes'] != task['forget'] or not _same(entry['metrics'], recorded):
                raise self.ledger.misfit(
                    entry['number'], 'its classes or metrics are not those in forgetting.json'
                )
        self.found.append(f'The metrics of {len(lines)} requests are those in forgetting.json.')


def _same(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    return one.keys() == other.keys() and all(
        value == other[key]
        or (value is not None and other[key] is not None and math.isclose(value, other[key]))
        for key, value in one.items()
    )
