"""Which classes are forgotten when: the protocol of a run and its partition of the moment."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import yaml
from mmengine.logging import MessageHub
from pydantic import Field
from torch.utils.data import Dataset

from mmgslora.errors import ForgettingError

_HUB_KEY = 'class_partition'
_FILE_KEYS = ('tasks', 'order', 'sizes', 'missing')
Tasks = Annotated[
    Sequence[Sequence[str | int]],
    Field(description='a list with a list of classes for each task ([[cat],[dog,horse]])'),
]


@dataclass(frozen=True)
class ClassPartition:
    """What every class is during one forgetting task.

    Attributes:
        task: Number of the task, from 1.
        forget: Classes asked to go now.
        retain: Classes that must stay and have training data.
        old: Classes gone in earlier tasks, or from the start.
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

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The classes under the letter of their group: f, r, and o and m where there are any."""
        groups = dict(f=self.forget, r=self.retain, o=self.old, m=self.missing)
        return {letter: names for letter, names in groups.items() if names}

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

    The tasks are given in one of three ways. The first one that is there counts, so that a request
    on the command line needs not take back what a base config says:

    - ``tasks``: the classes of each task;
    - ``file``: a file with the same keys;
    - ``order`` and ``sizes``: all classes in a row, and how many of them each task takes off its
      end, as the authors do it. ``order[-10:]`` is the first of ``sizes=[10, 10]``,
      ``order[-20:-10]`` the second; the rest of the order stays.

    A class is given by its name or, where the data set is in COCO format, by its category id; of a
    folder per class, by its place among the classes, from 0.

    Args:
        classes: All class names the model was trained on, in label order.
        tasks: One list of classes per forgetting task.
        missing: Classes that must stay but have no training data. Defaults to none.
        order: All classes.
        sizes: Number of classes per forgetting task.
        file: YAML or JSON file (by its suffix) with the keys ``tasks`` or ``order`` and ``sizes``,
            and ``missing``. A relative path starts in the current folder.
        category_ids: Class name of every category id, see :func:`category_ids_of`. Defaults to
            None: classes have names only.
        forgotten: Classes that the model had forgotten before the first task: they are old in
            every task. Defaults to none.

    Raises:
        ForgettingError: A name or id is unknown, a class stands in two tasks or twice in the
            order, a task is empty, a missing class is to be forgotten, a class of either is
            forgotten already, nothing is left to retain, order and sizes do not fit, or the file
            cannot be read or understood.
    """

    def __init__(
        self,
        classes: Sequence[str],
        tasks: Tasks | None = None,
        missing: Sequence[str | int] = (),
        order: Sequence[str | int] | None = None,
        sizes: Sequence[int] | None = None,
        file: str | Path | None = None,
        category_ids: Mapping[int | str, str] | None = None,
        forgotten: Sequence[str] = (),
    ) -> None:
        self.classes = tuple(classes)
        self.category_ids = category_ids
        if tasks is None and file is not None:
            content = _read(Path(file))
            tasks, order, sizes = (content.get(key) for key in ('tasks', 'order', 'sizes'))
            missing = missing or content.get('missing') or ()
        if tasks is None and (order is not None or sizes is not None):
            tasks = self._from_the_end(order, sizes)
        _check_list(tasks or (), 'the tasks')
        self.tasks = tuple(self._names(t, f'task {n}') for n, t in enumerate(tasks or (), 1))
        self.missing = self._names(missing, 'the missing classes')
        self.forgotten = self._names(forgotten, 'the classes the model has forgotten')
        self._check()

    def _check(self) -> None:
        """Refuse tasks that cannot all be asked of this model."""
        if not self.tasks:
            raise ForgettingError('The protocol has no tasks; give at least one list of classes.')
        asked_in: dict[str, int] = {}
        for number, task in enumerate(self.tasks, 1):
            if not task:
                raise ForgettingError(
                    f'Task {number} of the protocol is empty; give at least one class to forget.'
                )
            for name in task:
                if name in asked_in:
                    raise ForgettingError(
                        f'Class {name!r} is to be forgotten in task {asked_in[name]} and again in '
                        f'task {number}; a class can be forgotten once.'
                    )
                asked_in[name] = number
        for name in self.missing:
            if name in asked_in:
                raise ForgettingError(
                    f'Class {name!r} is to be forgotten in task {asked_in[name]} and is also '
                    'listed as missing; a missing class is one that must stay.'
                )
        for name in self.forgotten:
            if name in asked_in or name in self.missing:
                wish = (
                    f'is in task {asked_in[name]}' if name in asked_in else 'is listed as missing'
                )
                raise ForgettingError(
                    f'Class {name!r} {wish}, but the model to start from has forgotten it already '
                    f'({", ".join(self.forgotten)}); leave it out.'
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
        gone = {name for earlier in (self.forgotten, *self.tasks[: task - 1]) for name in earlier}
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

    def _from_the_end(
        self, order: Sequence[str | int] | None, sizes: Sequence[int] | None
    ) -> list[tuple[str, ...]]:
        if order is None or sizes is None:
            there, absent = ('sizes', 'order') if order is None else ('order', 'sizes')
            raise ForgettingError(
                f'The protocol has {there} but no {absent}; order lists all classes, and sizes '
                'says how many each task takes off its end, e.g. sizes=[10, 10].'
            )
        names = self._names(order, 'the order')
        for name in self.classes:
            if names.count(name) != 1:
                times = f'{names.count(name)} times' if name in names else 'not'
                raise ForgettingError(
                    f'Class {name!r} is {times} in the order; every class must be there once.'
                )
        _check_list(sizes, 'sizes')
        for size in sizes:
            if not _is_integer(size) or size < 1:
                raise ForgettingError(
                    f'{size!r} in sizes is not a number of classes; a task needs 1 or more.'
                )
        if sum(sizes) >= len(names):
            raise ForgettingError(
                f'The sizes {list(sizes)} add up to {sum(sizes)} of {len(names)} classes; they '
                f'can add up to {len(names) - 1}, so that one is left to retain.'
            )
        ends = [len(names) - sum(sizes[:task]) for task in range(len(sizes))]
        return [names[end - size : end] for end, size in zip(ends, sizes)]

    def _names(self, entries: Sequence[str | int], where: str) -> tuple[str, ...]:
        """The entries as class names, each of which the model knows."""
        _check_list(entries, where)
        return tuple(self._name(entry, where) for entry in entries)

    def _name(self, entry: str | int, where: str) -> str:
        if entry in self.classes:
            return entry
        number_name = str(entry) in self.classes and _is_integer(entry)
        if number_name and (self.category_ids or {}).get(entry, str(entry)) == str(entry):
            return str(entry)
        if number_name:
            raise ForgettingError(
                f'{entry} in {where} is the name of a class and the category id of '
                f'{self.category_ids[entry]!r}; write the name in quotes in a config or a protocol '
                'file, or the id of the class that is meant.'
            )
        if str(entry) in (self.category_ids or {}):  # some files have text for their ids
            return self.category_ids[str(entry)]
        if not _is_integer(entry):
            near = difflib.get_close_matches(str(entry), self.classes, n=1, cutoff=0)
            raise ForgettingError(
                f'Class {entry!r} in {where} is unknown; did you mean {near[0]!r}? '
                f'The model knows: {", ".join(self.classes)}.'
            )
        padded = [name for name in self.classes if name.isdecimal() and name != str(int(name))]
        if padded:  # YAML reads 0000045 as an octal number
            raise ForgettingError(
                f'{entry} in {where} is a number, and classes are called by numbers, such as '
                f'{padded[0]!r}; give the name, in quotes where it is written in a file.'
            )
        if self.category_ids is None:
            raise ForgettingError(
                f'Category id {entry} in {where} means nothing, for the data set is not in COCO '
                f'format; give class names: {", ".join(self.classes)}.'
            )
        if entry not in self.category_ids:
            near = sorted(sorted(self.category_ids, key=partial(_distance, entry))[:4])
            raise ForgettingError(
                f'Category id {entry} in {where} does not exist in the data set; it has '
                f'{len(self.category_ids)} ids, the next ones being '
                f'{", ".join(f"{known} ({self.category_ids[known]})" for known in near)}.'
            )
        return self.category_ids[entry]


def category_ids_of(dataset: Dataset) -> dict[int | str, str] | None:
    """Class name of every id of a data set in COCO format, of every number of a folder per class.

    None for other data sets.
    """
    if not hasattr(dataset, 'cat_ids'):
        return None
    return dict(zip(dataset.cat_ids, dataset.metainfo['classes']))


def _distance(one: int, other: int | str) -> int:
    return 0 if isinstance(other, str) else abs(other - one)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_list(value: object, where: str) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ForgettingError(f'{value!r} is given for {where}; give a list, such as [{value!r}].')


class _Loader(yaml.SafeLoader):
    """Of two values under one key YAML would silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        _without_doubles([(key.value, value) for key, value in node.value])
        return super().construct_mapping(node, deep)


def _without_doubles(pairs: Sequence[tuple]) -> dict:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f'the key {key!r} is there {count} times')
    return dict(pairs)


def _read(file: Path) -> dict:
    """The content of a protocol file."""
    name = f'Protocol file {str(file)!r}'
    if file.suffix not in ('.yaml', '.yml', '.json'):
        raise ForgettingError(f'{name} is of an unknown kind; it must end in .yaml, .yml or .json.')
    if not file.is_file():
        raise ForgettingError(f'{name} does not exist; a relative path starts in {Path.cwd()}.')
    try:
        text = file.read_text(encoding='utf-8')
        if file.suffix == '.json':
            content = json.loads(text, object_pairs_hook=_without_doubles)
        else:
            content = yaml.load(text, _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        kind = 'JSON' if file.suffix == '.json' else 'YAML'
        reason = ' '.join(str(error).split())
        raise ForgettingError(f'{name} cannot be read as {kind}: {reason}.') from error
    allowed = f'a protocol has the keys {", ".join(_FILE_KEYS)}'
    if not isinstance(content, dict):
        raise ForgettingError(f'{name} holds {content!r} instead of keys and values; {allowed}.')
    for key in content:
        if key not in _FILE_KEYS:
            raise ForgettingError(f'{name} has the unknown key {key!r}; {allowed}.')
    # Here no base config is in play, so two answers to one question are a mistake.
    if 'tasks' in content and ('order' in content or 'sizes' in content):
        raise ForgettingError(f'{name} has tasks and order or sizes; it can have one of the two.')
    return content
