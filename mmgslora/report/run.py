"""What a finished run left in its work_dir: the page and the certificates read it here."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmgslora.errors import ForgettingError
from mmgslora.report.audit_rows import AuditRows
from mmgslora.report.record import tasks_of


class FinishedRun:
    """A run's record, audit and files; none of the run's Python is executed.

    Args:
        work_dir: Folder with ``forgetting.json``.
        config: A config of your own to read ``requests`` and ``thresholds`` from; it is executed,
            as every config is. Defaults to None: those that ``forgetting.json`` holds.

    Raises:
        ForgettingError: There is no ``forgetting.json``, it holds no task, or one of the files
            cannot be read.
    """

    def __init__(
        self, work_dir: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
    ) -> None:
        self.work_dir = Path(work_dir)
        if not (self.work_dir / 'forgetting.json').is_file():
            raise ForgettingError(
                f'{str(work_dir)!r} has no forgetting.json; give the work_dir of a run that has '
                'finished at least one forgetting task.'
            )
        self.record = read_json(self.work_dir / 'forgetting.json')
        self.tasks = tasks_of(self.record)
        if not isinstance(self.record.get('pretrained', {}).get('per_class'), dict):
            raise ForgettingError(
                f'{str(self.work_dir / "forgetting.json")!r} holds no values of the pre-trained '
                'model (pretrained.per_class), which everything is compared with.'
            )
        self.config_path = self._find_config()
        wishes = _read_config(Path(config)) if config else self.record
        self.requests = wishes.get('requests')
        self.thresholds = wishes.get('thresholds')
        audit = self.work_dir / 'audit.json'
        self.audit = AuditRows(read_json(audit), str(audit)) if audit.is_file() else None

    @property
    def original(self) -> str | None:
        """The checkpoint that the run started from (``load_from``)."""
        return self.record.get('original')

    @property
    def split(self) -> str:
        """The split that the run measures on, 'test' or 'val'."""
        return self.record.get('split') or 'val'

    def file(self, path: str | None) -> dict[str, str | None]:
        """A file as certificates and page name it: its path and the hash of its content.

        Args:
            path: Relative to the work_dir, or as the config has it (relative to where training
                was started, which must then be the current folder).

        Returns:
            ``path`` and ``sha256``; the hash is None where the file is not there.
        """
        found = path and find_file(path, self.work_dir)
        return dict(path=path, sha256=self._sha256(found) if found else None)

    def _sha256(self, path: Path) -> str:
        # Merged checkpoints are large, and page and certificates ask for each several times.
        known = self.__dict__.setdefault('_hashes', {})
        if path not in known:
            known[path] = sha256(path)
        return known[path]

    def _find_config(self) -> Path | None:
        """The config that MMEngine left in the work_dir under the name of the one it was given."""
        named = self.work_dir / Path(self.record.get('config') or '').name
        if named.suffix == '.py' and named.is_file():
            return named
        others = sorted(self.work_dir.glob('*.py'))
        return others[0] if len(others) == 1 else None


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


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        ForgettingError: The file is no JSON, or something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ForgettingError(f'{str(path)!r} cannot be read as JSON: {error}.') from error
    if not isinstance(content, dict):
        raise ForgettingError(
            f'{str(path)!r} holds a {type(content).__name__}; it must hold a JSON object.'
        )
    return content


def write_text(path: Path, text: str) -> None:
    """Write all of a text or nothing; the folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        # As bytes: what is hashed and signed must not depend on the system's line ends.
        draft.write_bytes(text.encode())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        # Only its values are read: what it would import for training is not needed here.
        return Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception as error:  # a config is Python, which can fail in any way
        raise ForgettingError(f'Config {str(path)!r} cannot be read: {error}.') from error
