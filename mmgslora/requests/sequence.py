"""The requests that a run has served, and the model without some of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.lora.stored import StoredAdapter
from mmgslora.records.finished_run import FinishedRun, find_file, sha256
from mmgslora.records.ledger import Ledger
from mmgslora.records.record import adapter_folder, merged_file, unfinished
from mmgslora.requests.checkpoint import plain_state, read_checkpoint


class RequestSequence:
    """The requests of a work_dir, by the number of their task.

    Args:
        work_dir: Folder of a run that has finished a task; a copy on another machine is as good.
        base: The original model. Defaults to None: the file that the run began with, by its
            path from the work_dir or the current folder.

    Attributes:
        base: What was given as the original model.
        run: Record and files.
        ledger: Its events; without one the files are taken as they are.

    Raises:
        ForgettingError: There is no record, or the ledger was changed.
    """

    def __init__(
        self, work_dir: str | os.PathLike[str], base: str | os.PathLike[str] | None = None
    ) -> None:
        self.work_dir = Path(work_dir)
        self.run = FinishedRun(work_dir)
        self.ledger = Ledger(work_dir)
        self.base = base

    @property
    def tasks(self) -> list[int]:
        """Numbers of all requests that were served."""
        return [task['task'] for task in self.run.tasks]

    @property
    def taken_back(self) -> list[int]:
        """Numbers of those that were taken back since."""
        return [task for task in self.tasks if task in self.ledger.taken_back]

    @property
    def in_force(self) -> list[int]:
        """Numbers of those that the model of now must have forgotten."""
        return [task for task in self.tasks if task not in self.taken_back]

    def refuse_unfinished(self) -> None:
        """Nothing can be done with a sequence that is still being served.

        Raises:
            ForgettingError: A request was not served yet.
        """
        if left := unfinished(self.run.record):
            raise ForgettingError(f'{left} Go on with it first: the same command with --resume.')

    def classes(self, tasks: Sequence[int]) -> list[str]:
        """What these requests asked to forget, in their order."""
        return [name for task in tasks for name in self.run.tasks[self._place(task)]['forget']]

    @property
    def gone_before(self) -> list[str]:
        """Classes that the model of the first request had forgotten already."""
        return self.run.tasks[0]['old']

    @property
    def base_file(self) -> Path:
        """The original model.

        Raises:
            ForgettingError: It is not here.
        """
        path = self.base or self.run.original
        found = find_file(str(path), self.work_dir) if path else None
        if found is None:
            raise ForgettingError(
                f'The original model {str(path)!r} is not here, and requests are merged into it '
                'again; name the file with --base.'
            )
        return found

    @property
    def current_file(self) -> Path:
        """The plain checkpoint with all requests that are in force, and no other."""
        last = self.ledger.last('taken back')
        return self.work_dir / (last['files']['merged']['path'] if last else self.merged(-1))

    def merged(self, index: int) -> str:
        """Path, below the work_dir, of what the run had merged after a request."""
        return merged_file(self.tasks[index])

    def below(self, pattern: str) -> list[str]:
        """Files and folders of the work_dir that match a pattern, relative to it."""
        found = sorted(self.work_dir.glob(pattern))
        return [path.relative_to(self.work_dir).as_posix() for path in found]

    @cached_property
    def template(self) -> dict[str, Any]:
        """The run's last merged checkpoint, for names, shapes and meta."""
        return read_checkpoint(self.work_dir / self.merged(-1))

    def adapter(self, task: int) -> StoredAdapter:
        """The adapter of a request, checked against the ledger.

        Raises:
            ForgettingError: There is no such request, or a file is not the one in the ledger.
        """
        folder = self.work_dir / adapter_folder(self.tasks[self._place(task)])
        entry = self.ledger.last('forgotten', task)
        for role, file in (entry or {'files': {}})['files'].items():
            path = self.work_dir / file['path']
            if role.startswith('adapter/') and path.is_file() and sha256(path) != file['sha256']:
                raise self.ledger.misfit(entry['number'], f'{file["path"]} was changed')
        return StoredAdapter.read(folder)

    def state(self, tasks: Sequence[int]) -> dict[str, Tensor]:
        """State dict of the original with the adapters of these requests, and no other, merged in.

        Raises:
            ForgettingError: The base is another model, or an adapter cannot do without a request
                that is left out: it holds modules whole that the other had changed.
        """
        state = plain_state(read_checkpoint(self.base_file), self.template['state_dict'])
        self.adapter(self.tasks[0]).check_base(state)
        left_out: set[str] = set()
        last = max(map(self._place, tasks), default=-1)
        for task in self.tasks[: last + 1]:
            adapter = self.adapter(task)
            if task not in tasks:
                left_out |= adapter.changes(state)
                continue
            tied = sorted(left_out.intersection(adapter.whole))
            if tied:
                raise ForgettingError(
                    f'Request {task} holds {tied[0]!r} whole, as an earlier request that is to be '
                    'left out had changed it; take that one back too, or serve the others again '
                    'from the original.'
                )
            state = adapter.merged(state, own_base=not left_out)
        return state

    def meta(self, tasks: Sequence[int]) -> dict[str, Any]:
        """Meta of a plain checkpoint that has forgotten these requests."""
        forgotten = [*self.gone_before, *self.classes(tasks)]
        meta = {k: v for k, v in self.template['meta'].items() if k != 'sealed'}
        return dict(meta, task=max(tasks, default=0), forgotten=forgotten)

    def _place(self, task: int) -> int:
        if task not in self.tasks:
            raise ForgettingError(
                f'There is no request {task} in {str(self.work_dir)!r}; it has '
                f'{", ".join(map(str, self.tasks))}.'
            )
        return self.tasks.index(task)
