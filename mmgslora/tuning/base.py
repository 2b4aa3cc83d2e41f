"""What every way of changing a model offers, whatever method drives it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import Registry
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup
from mmgslora.settings import build_from, settings_of

TUNERS = Registry('tuner', scope='mmgslora')
"""Every tuner by the name of its class."""


class Tuner(ABC):
    """What of a plain model a request may change, and the model's past that methods learn from.

    A plain object, not a module: what it adds to a model are the model's own parameters. Bound to
    one model by :meth:`attach`.
    """

    has_groups: bool = False
    """Whether what it trains comes in groups that sparsity can switch off."""

    def __init__(self) -> None:
        self.model: nn.Module
        self._copies: dict[str, nn.Module] = {}
        self._asked: set[str] = set()

    def attach(self, model: nn.Module, frozen_parts: Sequence[str]) -> None:
        """Make a built plain model ready: afterwards just what may change requires a gradient.

        Args:
            model: The plain model, changed in place.
            frozen_parts: Names of parts that its family leaves alone unless the config says
                otherwise.

        Raises:
            ForgettingError: Nothing in the model can be tuned this way.
        """
        self.model = model
        self._frozen_parts = frozen_parts
        self._attach(frozen_parts)

    @abstractmethod
    def _attach(self, frozen_parts: Sequence[str]) -> None: ...

    def begin_task(
        self,
        generator: torch.Generator | None = None,
        first: bool = False,
        teachers: Sequence[str] = (),
    ) -> None:
        """A task begins: what it trains is fresh, and the named teachers are remembered.

        Args:
            generator: Source of fresh parameters. Defaults to PyTorch's global CPU one.
            first: Whether this is the first task. Defaults to False.
            teachers: Those that will be asked for, see :meth:`teacher`. Defaults to none.
        """
        self._begin_task(generator, first)
        self._asked = set(teachers)
        for name in teachers:
            if name not in self._in_model and (first or name != 'original'):
                self._copies[name] = self._copy()

    @abstractmethod
    def _begin_task(self, generator: torch.Generator | None, first: bool) -> None: ...

    @abstractmethod
    def end_task(self, generator: torch.Generator | None = None) -> None:
        """What was trained becomes part of the model."""

    _in_model: Sequence[str] = ()
    """Teachers that need no copy."""

    def teacher(self, name: str) -> AbstractContextManager[nn.Module]:
        """Within, the plain model as it was: when the task began, or before the first task.

        Args:
            name: 'task_start' or 'original', one of those that the task began with.

        Yields:
            The model to ask, in eval mode and without gradients of its own.
        """
        return nullcontext(self._copies[name])

    @abstractmethod
    def at_start(self) -> AbstractContextManager[None]:
        """Within, and before the first step of a task, the model is what it was at its start."""

    @torch.no_grad()
    def _copy(self) -> nn.Module:
        """The model at the start of the task; it shares the frozen parts where none of them learns.

        Such a part stays in eval mode and is never written to.
        """
        parts = [getattr(self.model, name, None) for name in self._frozen_parts]
        shared = {id(part): part for part in parts if part is not None and not self.learns(part)}
        with self.at_start():
            return copy.deepcopy(self.model, shared).requires_grad_(False).eval()

    def keep(self, name: str) -> None:
        """Remember the model as it is now as a teacher, until another is kept by the name.

        Parts without anything that learns are the teacher's, too, so that what they give is
        computed once for both; none of them may hold dropout that is active.

        Args:
            name: For :meth:`teacher`.
        """
        fixed = [part for part in self.model.modules() if not self.learns(part)]
        self._copies[name] = copy.deepcopy(self.model, {id(part): part for part in fixed})
        self._copies[name].requires_grad_(False).eval()

    @abstractmethod
    def owns(self, key: str) -> bool:
        """Whether an entry of the model's state dict is the tuner's, not the plain model's."""

    def plain_state_dict(self) -> dict[str, Tensor]:
        """The state dict of the plain model without what the tuner added."""
        return {key: v for key, v in self.model.state_dict().items() if not self.owns(key)}

    @abstractmethod
    def save(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Write, before :meth:`end_task`, all that the task has changed.

        The model that the task began with and this folder give the model after it:
        :func:`~mmgslora.lora.apply_adapter`.
        """

    @abstractmethod
    def check_gradients(self) -> None:
        """After the first backward pass of a task: see that everything that is tuned learns.

        Raises:
            ForgettingError: Something gets no gradient.
        """

    def groups(self, by: str) -> list[LoRAGroup]:
        """What it trains, in the groups that sparsity switches off.

        Raises:
            ForgettingError: There are none.
        """
        raise ForgettingError(
            f"{type(self).__name__} has no groups to switch off; set sparsity.mode='none', or "
            "tune with type='LoRA'."
        )

    @abstractmethod
    def learns(self, module: nn.Module, recurse: bool = True) -> bool:
        """Whether a module may change at the moment, or differs from its weights.

        Args:
            module: Of the model, or of a teacher.
            recurse: Whether the modules inside it count. Defaults to True.
        """

    def state_dict(self) -> dict[str, Any]:
        """What of the past must survive a kill: weights of teachers that are copies."""
        return {name: model.state_dict() for name, model in self._copies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for name, weights in state.items():
            self._copies[name] = self._copy()
            self._copies[name].load_state_dict(weights)

    def settings(self) -> dict[str, Any]:
        """Every setting as it was resolved, for the record of a run."""
        return {name: getattr(self, name) for name in settings_of(type(self))}


def build_tuner(config: Mapping[str, Any]) -> Tuner:
    """Build a tuner from its config.

    Args:
        config: ``type``, the name of a tuner in the TUNERS registry, and its settings.

    Raises:
        ForgettingError: The tuner or one of its settings is unknown, or a value is not possible.
    """
    return build_from(TUNERS, {'type': 'LoRA', **config}, 'tune')
