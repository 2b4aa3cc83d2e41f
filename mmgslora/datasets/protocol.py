"""Which classes are forgotten when: the protocol of a run and its partition of the moment."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mmengine.logging import MessageHub

from mmgslora.errors import ForgettingError

_HUB_KEY = 'class_partition'


@dataclass(frozen=True)
class ClassPartition:
    """What every class is during one forgetting task.

    Attributes:
        task: Number of the task, from 1.
        forget: Classes asked to go now.
        retain: Classes that must stay and have training data.
        old: Classes gone in earlier tasks.
        missing: Classes that must stay and have no training data.
        classes: All classes of the model, in label order.
    """

    task: int
    forget: tuple[str, ...]
    retain: tuple[str, ...]
    old: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def labels(self, group: str) -> list[int]:
        """Label numbers of one group, e.g. ``labels('forget')``."""
        return [self.classes.index(name) for name in getattr(self, group)]

    def publish(self) -> None:
        """Make this the partition of the moment; MMEngine saves it with every checkpoint."""
        MessageHub.get_current_instance().update_info(
            _HUB_KEY, {k: list(v) if k != 'task' else v for k, v in asdict(self).items()}
        )

    @classmethod
    def current(cls) -> ClassPartition | None:
        """The partition of the moment, or None outside a forgetting run."""
        hub = MessageHub.get_current_instance()
        if _HUB_KEY not in hub.runtime_info:
            return None
        info = hub.get_info(_HUB_KEY)
        return cls(**{k: tuple(v) if k != 'task' else v for k, v in info.items()})


class Protocol:
    """The ordered list of forgetting tasks, checked against the classes of the model.

    Args:
        classes: All class names the model was trained on, in label order.
        tasks: One list of class names per forgetting task.
        missing: Classes that must stay but have no training data. Defaults to none.

    Raises:
        ForgettingError: A name is unknown, a class stands in two tasks, a task is
            empty, a missing class is to be forgotten, or nothing is left to retain.
    """

    def __init__(
        self,
        classes: Sequence[str],
        tasks: Sequence[Sequence[str]],
        missing: Sequence[str] = (),
    ) -> None:
        self.classes = tuple(classes)
        self.tasks = tuple(tuple(task) for task in tasks)
        self.missing = tuple(missing)
        if not self.tasks:
            raise ForgettingError('The protocol has no tasks; give at least one list of classes.')
        asked_in: dict[str, int] = {}
        for number, task in enumerate(self.tasks, 1):
            if not task:
                raise ForgettingError(
                    f'Task {number} of the protocol is empty; give at least one class to forget.'
                )
            for name in task:
                self._check_known(name, f'task {number}')
                if name in asked_in:
                    raise ForgettingError(
                        f'Class {name!r} is to be forgotten in task {asked_in[name]} and again in '
                        f'task {number}; a class can be forgotten once.'
                    )
                asked_in[name] = number
        for name in self.missing:
            self._check_known(name, 'the missing classes')
            if name in asked_in:
                raise ForgettingError(
                    f'Class {name!r} is to be forgotten in task {asked_in[name]} and is also '
                    'listed as missing; a missing class is one that must stay.'
                )
        if not self.partition(len(self.tasks)).retain:
            raise ForgettingError(
                f'The protocol forgets {len(asked_in)} of {len(self.classes)} classes and leaves '
                'none with training data to retain; leave at least one.'
            )

    def __len__(self) -> int:
        return len(self.tasks)

    def partition(self, task: int) -> ClassPartition:
        """The partition during ``task`` (from 1); every group in label order but ``forget``."""
        if not 1 <= task <= len(self.tasks):
            raise ForgettingError(f'Task {task} does not exist; there are 1 to {len(self.tasks)}.')
        forget = self.tasks[task - 1]
        gone = {name for earlier in self.tasks[: task - 1] for name in earlier}
        return ClassPartition(
            task=task,
            forget=forget,
            retain=tuple(
                c for c in self.classes if c not in gone and c not in forget + self.missing
            ),
            old=tuple(c for c in self.classes if c in gone),
            missing=tuple(c for c in self.classes if c in self.missing),
            classes=self.classes,
        )

    def _check_known(self, name: str, where: str) -> None:
        if name in self.classes:
            return
        near = difflib.get_close_matches(str(name), self.classes, n=1, cutoff=0)
        raise ForgettingError(
            f'Class {name!r} in {where} is unknown; did you mean {near[0]!r}? '
            f'The model knows: {", ".join(self.classes)}.'
        )
