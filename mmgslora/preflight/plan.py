"""One look at everything a run needs, before the run exists."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, DefaultScope, Registry

from mmgslora.datasets.protocol import Protocol
from mmgslora.errors import ForgettingError
from mmgslora.preflight.annotations import annotation_file, innermost, parsed, read_annotations

LOOP = 'ContinualForgettingLoop'


@dataclass
class Plan:
    """What a config asks for. Each part is read or built once, when a check first needs it.

    Args:
        cfg: The whole config, with ``work_dir``.
        restart: Whether a killed run that has no checkpoint yet may start again in its work_dir.
        every_image: Whether every image is opened, and not only looked for.

    Attributes:
        problems: By the name of the check, a sentence for each reason not to start.
        notes: What is worth knowing and no reason.
        forgotten: Classes that the model to start from had forgotten before the first task.
        error: What stopped a check that says nothing of its own about it.
    """

    cfg: Config
    restart: bool = False
    every_image: bool = False
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    forgotten: tuple[str, ...] = ()
    error: Exception | None = None

    @property
    def forgets(self) -> bool:
        """Whether the config is of a forgetting run; another training has nothing to check."""
        loop = self.cfg.get('train_cfg')
        return isinstance(loop, Mapping) and loop.get('type') == LOOP

    @property
    def sentences(self) -> list[str]:
        """Every problem, each once, in the order in which they were found."""
        return list(dict.fromkeys(s for found in self.problems.values() for s in found))

    @property
    def work_dir(self) -> Path:
        return Path(self.cfg.work_dir)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The config as plain dicts and lists."""
        return self.cfg.to_dict()

    @property
    def loaders(self) -> dict[str, Mapping]:
        """The data loaders of the config by split."""
        found = {split: self.plain.get(f'{split}_dataloader') for split in ('train', 'val', 'test')}
        return {split: loader for split, loader in found.items() if loader}

    @property
    def schedulers(self) -> list[Any]:
        """The schedules of the config, without the key that is none of their own settings."""
        found = self.plain.get('param_scheduler') or []
        return [
            {key: value for key, value in item.items() if key != 'convert_to_iter_based'}
            if isinstance(item, Mapping)
            else item
            for item in (found if isinstance(found, (list, tuple)) else [found])
        ]

    @property
    def measured_on(self) -> str:
        """The split that the run measures on."""
        return self.plain['train_cfg'].get('evaluate_on', 'test')

    @cached_property
    def annotations(self) -> dict[Path, dict | ForgettingError]:
        """The content of every file that MMDetection would read as COCO's, or what is wrong.

        Files of data sets of other kinds, such as the list of images of an ``XMLDataset``, are none
        of these.
        """
        found: dict[Path, dict | ForgettingError] = {}
        for loader in self.loaders.values():
            file = annotation_file(loader['dataset'])
            kind = find_class(innermost(loader['dataset']).get('type'), DATASETS)
            if kind is None or not issubclass(kind, CocoDataset):
                continue
            if file is None or not file.is_file() or file.resolve() in found:
                continue
            try:
                found[file.resolve()] = read_annotations(file)
            except ForgettingError as error:
                found[file.resolve()] = error
        return found

    @cached_property
    def views(self) -> Any:
        """The :class:`~mmgslora.datasets.ForgettingViews` that the run trains on."""
        return self.dataset('train')

    @cached_property
    def held_out(self) -> Any:
        """The data set that is measured on."""
        return self.dataset(self.measured_on)

    @cached_property
    def protocol(self) -> Protocol:
        return Protocol(
            self.views.classes,
            category_ids=self.views.category_ids,
            forgotten=self.forgotten,
            **self.plain['train_cfg']['protocol'],
        )

    @cached_property
    def model(self) -> Any:
        """The model with its adapters; its random weights take nothing from the run's numbers."""
        with torch.random.fork_rng(devices=[]):
            return MODELS.build(copy.deepcopy(self.cfg.model))

    def run(self, checks: Sequence[tuple[Check, tuple[str, ...]]]) -> Plan:
        """Carry out checks; one is left out where another that it rests on has found a problem.

        Args:
            checks: Each a function that yields sentences, and the names of those it rests on.
        """
        for check, after in checks:
            if any(self.problems.get(name) for name in after):
                continue
            found: list[str] = []
            try:
                with _quiet(), DefaultScope.overwrite_default_scope(self.cfg.get('default_scope')):
                    found.extend(check(self))
            except ForgettingError as error:
                found.append(str(error))
            except Exception as error:  # parts of others fail in ways of their own
                what = check.__name__.replace('_', ' ')
                found.append(f'{what} cannot be checked: {reason(error)} (--debug shows where).')
                self.error = error
            self.problems[check.__name__] = found
        return self

    def forget_files(self) -> None:
        """Let go of what only the checks needed: the content of files, and the model."""
        for name in ('annotations', 'model', 'held_out'):
            self.__dict__.pop(name, None)

    def dataset(self, split: str) -> Any:
        """The data set of a loader, built from the files as they were read."""
        dataset = copy.deepcopy(self.cfg[f'{split}_dataloader'].dataset)
        contents = {k: v for k, v in self.annotations.items() if isinstance(v, dict)}
        try:
            with parsed(contents), contextlib.redirect_stdout(io.StringIO()):
                built = DATASETS.build(dataset)
                built.full_init() if hasattr(built, 'full_init') else None
                return built
        except ForgettingError:
            raise
        except Exception as error:  # data sets of others fail in ways of their own
            why = reason(error)
            if 'need at least one array' in why:  # MMEngine packs what is left
                why = 'of its images none is left, by filter_cfg or indices'
            raise ForgettingError(f'{split}_dataloader.dataset cannot be built: {why}') from error


Check = Callable[[Plan], Iterator[str]]


def as_mapping(value: Any) -> Mapping:
    """A part of a config; an empty one where it is no mapping."""
    return value if isinstance(value, Mapping) else {}


def find_class(kind: Any, registry: Registry) -> type | None:
    """The class that a ``type`` of a config names; None where there is none."""
    if not isinstance(kind, str):
        return kind if inspect.isclass(kind) else None
    # Unlike build(), get() of the root registry does not look into the default scope.
    with registry.switch_scope_and_registry(None) as scoped:
        try:
            found = scoped.get(kind)
        except (KeyError, ImportError, ValueError):
            return None
    return found if inspect.isclass(found) else None


def reason(error: BaseException) -> str:
    """An error of another library in one line."""
    text = ' '.join(str(error).split())
    if len(text) > 300:
        text = f'{text[:300]} ...'
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is built here is built again by the runner, which then says what it has to say."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        # MMEngine's loggers remember what was disabled, and only this makes them forget it.
        current = MMLogger.get_current_instance()
        current.setLevel(current.level)
