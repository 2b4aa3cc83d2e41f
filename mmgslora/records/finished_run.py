"""What a finished run left in its work_dir: page, certificates and audit read it here."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmgslora.audit.rows import AuditRows, is_oracle
from mmgslora.audit.verdict import Verdict, judge_request, limits_of
from mmgslora.errors import ForgettingError
from mmgslora.records.record import merged_file, tasks_of
from mmgslora.records.schema import Audit, Record, check_consistency, read_json


class FinishedRun:
    """A run's record, audit and files; none of the run's Python is executed.

    Args:
        work_dir: Folder with ``forgetting.json``.
        config: A config of your own to read ``requests`` and ``thresholds`` from; it is executed,
            as every config is. Defaults to None: those that ``forgetting.json`` holds.

    Raises:
        ForgettingError: There is no ``forgetting.json``, it holds no task, or one of the files
            cannot be read or holds what no run can have written.
    """

    def __init__(
        self, work_dir: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
    ) -> None:
        self.work_dir = Path(work_dir)
        path, audit = self.work_dir / 'forgetting.json', self.work_dir / 'audit.json'
        if not path.is_file():
            raise ForgettingError(
                f'{str(work_dir)!r} has no forgetting.json; give the work_dir of a run that has '
                'finished at least one forgetting task.'
            )
        self.record = read_json(path, Record)
        self.tasks = tasks_of(self.record)
        check_consistency(self.record, str(path))
        wishes = _read_config(Path(config)) if config else self.record
        self.requests = wishes.get('requests')
        self.thresholds = wishes.get('thresholds')
        self.audit = AuditRows(read_json(audit, Audit), str(audit)) if audit.is_file() else None
        self._hashes: dict[str, str | None] = {}

    @property
    def split(self) -> str:
        """The split that the run measures on, 'test' or 'val'."""
        return self.record.get('split') or 'val'

    @property
    def config_path(self) -> Path | None:
        """The config that MMEngine left in the work_dir under the name of the one it was given."""
        named = self.work_dir / Path(self.record.get('config') or '').name
        if named.suffix == '.py' and named.is_file():
            return named
        others = sorted(self.work_dir.glob('*.py'))
        return others[0] if len(others) == 1 else None

    def file(self, path: str) -> dict[str, str | None]:
        """A file as certificates and page name it: its path and the hash of its content.

        Args:
            path: Relative to the work_dir.

        Returns:
            ``path`` and ``sha256``; the hash is None where the file is not there.
        """
        if path not in self._hashes:  # merged checkpoints are large, and asked for several times
            found = self.work_dir / path
            self._hashes[path] = sha256(found) if found.is_file() else None
        return dict(path=path, sha256=self._hashes[path])

    @property
    def original(self) -> str | None:
        """The checkpoint that the run started from (``load_from``)."""
        return self.record.get('original')

    @property
    def original_file(self) -> dict[str, str | None]:
        """The original with its hash, as the run recorded it.

        A record may name any file of the machine, so it is hashed here only inside the work_dir.
        """
        path, recorded = self.original, self.record.get('original_sha256')
        inside = path and not Path(path).is_absolute() and '..' not in Path(path).parts
        if recorded or not inside:
            return dict(path=path, sha256=recorded)
        return self.file(path)

    @cached_property
    def unfit(self) -> dict[int, str]:
        """Task number -> why its merged file is not the one that the run measured."""
        found = {}
        for task in self.tasks:
            file = self.file(merged_file(task['task']))
            recorded = (task.get('merged') or {}).get('sha256')
            if file['sha256'] is None:
                found[task['task']] = f'{file["path"]} is missing'
            elif recorded not in (None, file['sha256']):
                found[task['task']] = f'{file["path"]} was changed after the run had measured it'
        return found

    def audit_reason(self, task: dict) -> str:
        """Why the audit says nothing about a task's request; empty if it does."""
        audit = self.audit
        if audit is None:
            return 'there is no audit.json'
        if audit.task not in [one['task'] for one in self.tasks]:
            return f'audit.json is of task {audit.task}, which this run does not have'
        last = self.tasks[audit.task - 1]
        if {*audit.forgotten} != {*last['old'], *last['forget']} or audit.task < task['task']:
            return f'audit.json is of task {audit.task} and does not cover this request'
        return self.unfit.get(audit.task) or self._other_files(audit)

    def _other_files(self, audit: AuditRows) -> str:
        """Which role of the audit was played by another file than the run's."""
        hashes = {role: file.get('sha256') for role, file in audit.files.items()}
        merged, original = self.file(merged_file(audit.task)), self.original_file
        if hashes.get('unlearned') != merged['sha256']:
            return f'audit.json was made of another file than {merged["path"]}'
        if None not in (hashes.get('original'), self.record.get('original_sha256')) and (
            hashes['original'] != original['sha256']
        ):
            return f'audit.json was made with another original than {original["path"]}'
        if audit.has_oracle and not hashes.get('oracle'):
            return 'audit.json has values of an oracle, but names no file of one'
        oracles = {sha for role, sha in hashes.items() if is_oracle(role)}
        if audit.has_oracle and oracles & {merged['sha256'], original['sha256']}:
            return 'the oracle of audit.json is the audited or the original model itself'
        return audit.foreign(self.record.get('split'))

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each request, in their order.

        Raises:
            ForgettingError: The thresholds are not what they must be.
        """
        limits, found = limits_of(self.thresholds), []
        for task in self.tasks:
            reason = self.audit_reason(task)
            audit = None if reason else self.audit
            found.append(judge_request(self.record, task, limits, audit, reason, self.unfit))
        return found


def find_file(path: str, work_dir: Path) -> Path | None:
    """Where a path leads: below the work_dir, or else from the current folder."""
    return next((p for p in (work_dir / path, Path(path)) if p.is_file()), None)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception as error:  # a config is Python, which can fail in any way
        raise ForgettingError(f'Config {str(path)!r} cannot be read: {error}.') from error
