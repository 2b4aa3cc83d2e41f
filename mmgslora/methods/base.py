"""What every forgetting method offers, and the moments of a run it may act in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.registry import Registry
from torch import Tensor, nn

from mmgslora.families.view import SIDES, View
from mmgslora.settings import build_from, settings_of

if TYPE_CHECKING:  # the families build methods
    from mmgslora.families.base import ForgettingModel
    from mmgslora.tuning import Tuner

METHODS = Registry('method', scope='mmgslora')
"""Every method by the name of its class."""


@dataclass(frozen=True)
class Task:
    """The facts of a forgetting task.

    Attributes:
        number: From 1.
        names: All classes of the model, in label order.
        forget: (k,) labels of the classes asked to go now.
        retain: (k,) of those that must stay and have training data.
        old: (k,) of those gone in earlier tasks.
        missing: (k,) of those that must stay and have no training data.
    """

    number: int
    names: tuple[str, ...]
    forget: Tensor
    retain: Tensor
    old: Tensor
    missing: Tensor

    @property
    def must_be_gone(self) -> Tensor:
        """(g,) labels of all classes that must be gone after the task."""
        return torch.cat([self.forget, self.old])

    def of(self, side: str) -> Tensor:
        """(k,) labels of the classes that one side of a step is about."""
        return self.forget if side == 'forget' else self.retain


@dataclass
class Context:
    """The moment of a run in which a method acts.

    Attributes:
        model: The model that learns.
        task: The task.
        step: Iterations of the task that are done.
        steps: Iterations of the whole task.
        epoch: Epochs of the task that are done.
        optimizer: The optimizer; None before the first task.
        loader: The task's batches of both views; None outside a run.
        work_dir: Where the run writes; None outside a run.
        seed: The run's.
        generator: Source of a method's own draws, the same in every process and after a resume.
    """

    model: ForgettingModel = field(repr=False)
    task: Task
    step: int = 0
    steps: int = 1
    epoch: int = 0
    optimizer: torch.optim.Optimizer | None = field(default=None, repr=False)
    loader: torch.utils.data.DataLoader | None = field(default=None, repr=False)
    work_dir: Path | None = None
    seed: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator, repr=False)

    @property
    def progress(self) -> float:
        """Share of the task that is done, 0 to 1."""
        return self.step / self.steps

    @property
    def redraws(self) -> bool:
        """Whether another pass shows the images as they were not seen before."""
        return bool(getattr(getattr(self.loader, 'dataset', None), 'redraw', True))

    @property
    def batches(self) -> int:
        """Batches of one pass of :meth:`views`."""
        return self._parts * len(self.loader)

    def views(
        self, sides: Sequence[str] = SIDES, teachers: Sequence[str] = ()
    ) -> Iterator[dict[str, View]]:
        """The views of every batch of one pass, for what a method finds out before a task.

        Where ``steps_per_task`` makes an epoch a part of a pass, these are as many epochs as show
        every image to retain.
        """
        for part in range(self._parts):
            if self._parts > 1:
                self.loader.sampler.set_epoch(part)
            for batch in self.loader:
                data = self.model.data_preprocessor(batch, True)
                yield self.model.views(**data, sides=sides, teachers=teachers)

    @property
    def _parts(self) -> int:
        return getattr(getattr(self.loader, 'sampler', None), 'parts', 1)


class Part:
    """Something that acts at moments of a task: a method, or a piece that methods share."""

    def before_task(self, context: Context) -> None:
        """The task's data are drawn and its optimizer is built; nothing is trained."""

    def before_iter(self, context: Context) -> None:
        """An iteration begins."""

    def before_step(self, context: Context) -> None:
        """Gradients are there, weights have not moved. Not each iteration has a step."""

    def after_step(self, context: Context) -> None:
        """Weights have moved."""

    def after_task(self, context: Context) -> None:
        """Training is over; the task is merged and measured next."""

    def settled(self, context: Context) -> bool:
        """Whether what is trained at this moment is what the task will end with."""
        return True

    def check(self, tune: Tuner) -> None:
        """See, when the model is built, that this tuner can be driven. Defaults to any.

        Raises:
            ForgettingError: It cannot.
        """

    def check_epochs(self, epochs: int) -> None:
        """See, before anything runs, that a task has epochs enough. Defaults to any.

        Raises:
            ForgettingError: It has not.
        """

    def files(self, tasks: int) -> list[str]:
        """Files it will read, looked for before anything runs. Defaults to none.

        Args:
            tasks: How many tasks the run has.
        """
        return []

    def check_files(self, model: nn.Module, tasks: int) -> None:
        """See that what it will read fits the model to start from. Defaults to nothing.

        Args:
            model: The forgetting model with its weights; afterwards it has them again.
            tasks: How many tasks the run has.

        Raises:
            ForgettingError: It does not.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must survive a kill; goes into every checkpoint. Defaults to nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def summary(self) -> dict[str, Any]:
        """What the record of a task says of this part. Defaults to nothing."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Every setting as it was resolved, for the record of a run.

        A setting is kept in the attribute of its name.
        """
        values = {name: getattr(self, name) for name in settings_of(type(self))}
        return {k: v.settings() if isinstance(v, Part) else v for k, v in values.items()}


class Method(Part, ABC):
    """The rule that turns the views of a step into losses.

    A method never knows what is being trained, and nobody asks what kind of method it is: it acts
    at the moments of :class:`Part`, in which it calls its ``parts`` first, and its losses are
    summed.

    Args:
        dropout: Whether the model's dropout is active while forgetting. Defaults to False.

    Attributes:
        tune: What it trains where the config does not say, a config for the TUNERS registry.
        sides: The sides of a batch it needs.
        teachers: Names of those it learns from: 'task_start', the model when the task began, and
            'original', the model before the first task.
        parts: The shared pieces it is made of.
    """

    tune: Mapping[str, Any] = dict(type='LoRA')
    sides: tuple[str, ...] = SIDES
    teachers: tuple[str, ...] = ()
    parts: Sequence[Part] = ()

    def __init__(self, dropout: bool = False) -> None:
        self.dropout = dropout

    @abstractmethod
    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """Named losses of one step; those with 'loss' in their name are summed."""

    def sides_of(self, context: Context) -> tuple[str, ...]:
        """The sides needed at this moment. Defaults to ``sides``."""
        return self.sides

    def prepare(self, samples: list, context: Context) -> list:
        """The data samples of a batch as the method wants them, e.g. with other labels."""
        return samples

    def before_task(self, context: Context) -> None:
        for part in self.parts:
            part.before_task(context)

    def before_iter(self, context: Context) -> None:
        for part in self.parts:
            part.before_iter(context)

    def before_step(self, context: Context) -> None:
        for part in self.parts:
            part.before_step(context)

    def after_step(self, context: Context) -> None:
        for part in self.parts:
            part.after_step(context)

    def after_task(self, context: Context) -> None:
        for part in self.parts:
            part.after_task(context)

    def settled(self, context: Context) -> bool:
        return all(part.settled(context) for part in self.parts)

    def check(self, tune: Tuner) -> None:
        for part in self.parts:
            part.check(tune)

    def check_epochs(self, epochs: int) -> None:
        for part in self.parts:
            part.check_epochs(epochs)

    def files(self, tasks: int) -> list[str]:
        return [file for part in self.parts for file in part.files(tasks)]

    def check_files(self, model: nn.Module, tasks: int) -> None:
        for part in self.parts:
            part.check_files(model, tasks)

    def state_dict(self) -> dict[str, Any]:
        return {type(part).__name__: part.state_dict() for part in self.parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for part in self.parts:
            part.load_state_dict(state.get(type(part).__name__, {}))

    def summary(self) -> dict[str, Any]:
        return {key: value for part in self.parts for key, value in part.summary().items()}


def of_task(value: float | Sequence[float], task: Task) -> float:
    """The value of a setting with one number per task; the last serves all further tasks."""
    values = value if isinstance(value, Sequence) else [value]
    return values[min(task.number, len(values)) - 1]


def task_terms(view: View) -> dict[str, Tensor]:
    """The task loss of a view, term by term, under names of its side."""
    return {f'{view.side}_{name}': value for name, value in view.terms.items()}


def build_method(config: Mapping[str, Any]) -> Method:
    """Build a method from its config; a setting of another method is refused, not dropped.

    Args:
        config: ``type``, the name of a method in the METHODS registry, and its settings.

    Raises:
        ForgettingError: The method or one of its settings is unknown, or a value is not possible.
    """
    return build_from(METHODS, config, 'method')
