"""What every forgetting method offers to the families and the hooks."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup, discover_groups
from mmgslora.losses import group_penalty

if TYPE_CHECKING:  # the families build methods
    from mmgslora.families.view import View

_NO_SPARSITY = dict(mode='none', alpha=0.0, by='block', warmup_epochs=0, select=0.5)


class Method(ABC):
    """The rule that turns the two views of a step into losses.

    A method never knows what is being trained. It is a plain object, not a module: what it learns
    with are the model's LoRA groups, handed to it by :meth:`bind`.

    Args:
        sparsity: How groups are driven to zero. ``mode`` is 'proximal' (ours: after every
            optimizer step the B matrices of a group shrink together), 'penalty' (the papers':
            a loss term) or 'none'; ``alpha`` its weight; ``by`` the grouping ('block', 'module'
            or 'matrix'); ``warmup_epochs`` how many epochs of every task alpha stays 0;
            ``select`` the share of a task's epochs after which 'proximal' stops selecting and
            refits (see :class:`~mmgslora.engine.GroupSparsityHook`). Defaults to no sparsity.
        dropout: Whether the transformer's dropout is active while forgetting. Defaults to False.

    Attributes:
        needs_teacher: Whether views must carry the teacher's outputs and their ``drift`` from
            them. The teacher is the adapter-free model: the model at the start of the task.
        prototype_source: What ``prototypes`` are made of, 'embeddings' or 'head'; None for a
            method without them.
        prototype_file: Where to take them from instead, or None.
        prototypes: (C, D) one row per class, NaN for a class without data; set by
            :class:`~mmgslora.engine.PrototypeHook` before the first step.
        alpha: The sparsity weight of the moment; 0 during warm-up.
        groups: The LoRA groups of the bound model.

    Raises:
        ForgettingError: A key or the mode of ``sparsity`` is unknown.
    """

    needs_teacher: bool = False
    prototype_source: str | None = None
    prototype_file: str | None = None
    prototypes: Tensor | None = None

    def __init__(self, sparsity: dict | None = None, dropout: bool = False) -> None:
        sparsity = sparsity or {}
        check_names(sparsity, _NO_SPARSITY, 'Method sparsity')
        sparsity = {**_NO_SPARSITY, **sparsity}
        check_choice('sparsity.mode', sparsity['mode'], ('proximal', 'penalty', 'none'))
        self.sparsity = sparsity
        self.dropout = dropout
        self.alpha = 0.0 if sparsity['warmup_epochs'] else sparsity['alpha']
        self.groups: list[LoRAGroup] = []

    def bind(self, model: nn.Module) -> None:
        """Take over the LoRA groups of a model."""
        self.groups = discover_groups(model, by=self.sparsity['by'])

    def settings(self) -> dict[str, Any]:
        """Every setting as it was resolved, for the record of a run."""
        state = ('alpha', 'groups', 'prototypes')
        return {name: value for name, value in vars(self).items() if name not in state}

    @abstractmethod
    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """Named losses of one step; those with 'loss' in their name are summed."""

    def retain_losses(self, retain: View) -> dict[str, Tensor]:
        """The task loss of the retain view, term by term, and the sparsity penalty if it is on."""
        losses = {f'retain_{name}': value for name, value in retain.terms.items()}
        if self.sparsity['mode'] == 'penalty' and self.alpha:
            losses['loss_sparsity'] = self.alpha * group_penalty(self.groups)
        return losses

    @staticmethod
    def of_task(values: Sequence[float]) -> float:
        """The value of a list with one per task; the last one serves all further tasks."""
        partition = ClassPartition.current()
        task = 1 if partition is None else partition.task
        return values[min(task, len(values)) - 1]


def build_method(config: dict) -> Method:
    """Build a method from its config; a setting of another method is refused, not dropped.

    Args:
        config: ``type``, the name of a method in the MODELS registry, and its settings.

    Raises:
        ForgettingError: The method or one of its settings is unknown.
    """
    settings = copy.deepcopy(dict(config))
    kind = settings.pop('type', None)
    with MODELS.switch_scope_and_registry(None) as registry:
        found = registry.get(kind) if isinstance(kind, str) else kind
    if not (inspect.isclass(found) and issubclass(found, Method)):
        names = [
            name
            for name, cls in MODELS.module_dict.items()
            if inspect.isclass(cls) and issubclass(cls, Method)
        ]
        raise ForgettingError(f'method.type is {kind!r}{_nearest(kind, names)}.')
    check_names(settings, _settings_of(found), f'Method {found.__name__}')
    return found(**settings)


def _settings_of(method: type) -> list[str]:
    """Names a class can be built with; ``**kwargs`` goes on to the next class."""
    names: list[str] = []
    for cls in method.__mro__:
        if '__init__' not in vars(cls):
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def check_names(given: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Refuse a setting that does not exist, e.g. one left over from a config underneath.

    Raises:
        ForgettingError: A name in ``given`` is not in ``allowed``.
    """
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise ForgettingError(
                f'{what} has no setting {name!r}{_nearest(name, allowed)}; what a base config sets '
                'is taken away with _delete_=True.'
            )


def _nearest(name: object, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), allowed, n=1)
    meant = f' (did you mean {near[0]!r}?)' if near else ''
    return f'{meant}; allowed are {", ".join(allowed)}'


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of the allowed ones.

    Raises:
        ForgettingError: It is none of them.
    """
    if value not in allowed:
        choices = f'{", ".join(allowed[:-1])} or {allowed[-1]}'
        raise ForgettingError(f'{name} is {value!r}; it can be {choices}.')


def number(name: str, value: object) -> float:
    """A setting that is a finite number from 0 up.

    Raises:
        ForgettingError: It is not.
    """
    return _numbers(name, [value], value, 'a number from 0 up')[0]


def per_task(name: str, value: object) -> tuple[float, ...]:
    """A setting that is one number from 0 up, or a list of them with one per task.

    Raises:
        ForgettingError: It is neither.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return _numbers(name, values, value, 'a number from 0 up, or a list of them, one per task')


def _numbers(name: str, values: list, given: object, allowed: str) -> tuple[float, ...]:
    for value in values or [None]:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (plain and math.isfinite(value) and value >= 0):
            raise ForgettingError(f'{name} is {given!r}; it can be {allowed}.')
    return tuple(values)
