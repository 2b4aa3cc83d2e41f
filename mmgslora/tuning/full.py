"""Full: parameters themselves are trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import fingerprint
from mmgslora.lora.folder import CHANGED, also_named, packed, write_folder
from mmgslora.settings import checked
from mmgslora.tuning.base import TUNERS, Tuner


@TUNERS.register_module()
class Full(Tuner):
    """Trains parameters in place, as most published unlearning baselines do (ours).

    Of the parameters whose whole name matches those are trained that the model's own config does
    not freeze; buffers, such as batch-norm statistics, never change. A teacher is a frozen copy,
    made only where a method asks for it.

    Args:
        target: A regular expression over the names of parameters, e.g. ``'bbox_head\\..*'``.
            Defaults to all.
    """

    @checked
    def __init__(self, target: str = '.*') -> None:
        super().__init__()
        self.target = target
        self._start: dict[str, Tensor] = {}

    def _attach(self, frozen_parts: Sequence[str]) -> None:
        try:
            pattern = re.compile(self.target)
        except re.error as error:
            raise ForgettingError(
                f'tune.target {self.target!r} is not a valid regular expression: {error}.'
            ) from error
        named = dict(self.model.named_parameters())
        for name, parameter in named.items():
            parameter.requires_grad_(bool(parameter.requires_grad and pattern.fullmatch(name)))
        if not any(parameter.requires_grad for parameter in named.values()):
            raise ForgettingError(
                f'tune.target {self.target!r} matches no parameter of this '
                f'{type(self.model).__name__} that can be trained; its first is '
                f'{next(iter(named))!r}.'
            )

    def _begin_task(self, generator: torch.Generator | None, first: bool) -> None:
        self._start = {k: p.detach().cpu().clone() for k, p in self._trained().items()}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {k: p for k, p in self.model.named_parameters() if p.requires_grad}

    def end_task(self, generator: torch.Generator | None = None) -> None:
        """See that the weights are numbers; they are the model's already.

        Raises:
            ForgettingError: A weight holds NaN or infinity.
        """
        for name, parameter in self._trained().items():
            if not torch.isfinite(parameter).all():
                raise ForgettingError(
                    f'{name!r} holds NaN or infinity; lower the learning rate, or clip the '
                    'gradient, and train again.'
                )

    def at_start(self) -> AbstractContextManager[None]:
        return nullcontext()

    def learns(self, module: nn.Module, recurse: bool = True) -> bool:
        return any(parameter.requires_grad for parameter in module.parameters(recurse))

    def owns(self, key: str) -> bool:
        return False

    def save(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """The parameters that differ from the start of the task, whole."""
        changed = {
            name: value
            for name, value in self._trained().items()
            if name not in self._start or not torch.equal(value.cpu(), self._start[name])
        }
        state = self.plain_state_dict()
        others = also_named(self.model, list(changed))
        start = {
            key: self._start[name]
            for name in changed.keys() & self._start.keys()
            for key in (name, *others.get(name, ()))
        }
        base = fingerprint({**state, **start}) if changed.keys() <= self._start.keys() else None
        files = {CHANGED: packed(changed)}
        write_folder(folder, files, metadata, base, fingerprint(state), others)

    def check_gradients(self) -> None:
        trained = self._trained()
        if all(parameter.grad is None for parameter in trained.values()):
            raise ForgettingError(
                f'None of the {len(trained)} parameters that tune.target {self.target!r} matches '
                f'got a gradient, the first of them {next(iter(trained))!r}; the losses do not '
                'depend on them.'
            )

    def state_dict(self) -> dict[str, Any]:
        return dict(super().state_dict(), start=self._start)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # MMEngine puts what it reads of a checkpoint onto the device of the run.
        self._start = {name: value.cpu() for name, value in state.get('start', {}).items()}
        super().load_state_dict({k: v for k, v in state.items() if k != 'start'})
