"""Which stages of a model give the same for an image whenever they are asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import nn

from mmgslora.families.weights import weights_version
from mmgslora.tuning import Tuner


class Part(NamedTuple):
    """A module of a stage.

    Attributes:
        module: The module.
        recurse: Whether the modules inside it belong to the stage as well.
    """

    module: nn.Module
    recurse: bool = True


class _Known(NamedTuple):
    """What was read off a model in one of its modes.

    Attributes:
        weights: Which weights its fixed stages had, in the order of the stages.
        fixed: Those stages, with what their values depend on.
    """

    weights: tuple
    fixed: dict[str, tuple]


class Stages:
    """The stages of a model and of its teachers, one after another from image to output (ours).

    Args:
        tune: What of the model may change.
        staged: Gives the parts of every stage of a model, in order; all of its modules.
        written_to: Called when the weights of a model are others than before, with all entries
            that :meth:`fixed` can still give for it and the other models.
    """

    def __init__(
        self,
        tune: Tuner,
        staged: Callable[[nn.Module], dict[str, list[Part]]],
        written_to: Callable[[set[tuple]], None],
    ) -> None:
        self.tune, self.staged, self.written_to = tune, staged, written_to
        self._parts: WeakKeyDictionary[nn.Module, dict[str, list]] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[nn.Module, dict[tuple, _Known]] = WeakKeyDictionary()
        self._learning: WeakKeyDictionary[nn.Module, dict[tuple, str | None]] = WeakKeyDictionary()

    def fixed(self, model: nn.Module) -> dict[str, tuple]:
        """The stages up to the first that learns, each with what its values depend on.

        Args:
            model: The model, or a teacher of it.

        Returns:
            Those before the first that learns, in order. An entry is another one as soon as a
            weight was written to.
        """
        parts = self._parts.setdefault(model, {}) or self._read(model)
        # At every step: what was worked out is looked up by the modes and versions it depends on.
        learns = self.tune.learns
        modes = tuple(
            # What has no weights of its own cannot learn, and most modules have none.
            (part.training, bool(part._parameters) and learns(part, recurse=False))
            for inside in parts.values()
            for part, _ in _alive(inside)
        )
        learning = self._learning.setdefault(model, {})
        if modes not in learning:
            learning[modes] = self._first_learning(model)
        weights = _written(itertools.takewhile(lambda x: x[0] != learning[modes], parts.items()))
        known = self._known.setdefault(model, {})
        if modes not in known or known[modes].weights != weights:
            fixed = self._versions(model, learning[modes])
            self._known[model] = known = {
                other: x for other, x in known.items() if _agree(x.weights, weights)
            }
            known[modes] = _Known(weights, fixed)
            all_known = (x for by_mode in self._known.values() for x in by_mode.values())
            self.written_to({key for x in all_known for key in x.fixed.values()})
        return known[modes].fixed

    def _read(self, model: nn.Module) -> dict[str, list]:
        """The modules of each stage, and which of their entries are the model's own."""
        parts = self._parts[model]
        for name, inside in self.staged(model).items():
            modules = (
                m for part, recurse in inside for m in (part.modules() if recurse else [part])
            )
            parts[name] = [  # weak, or a teacher would keep itself alive
                (ref(m), [x for x in (*m._parameters, *m._buffers) if not self.tune.owns(x)])
                for m in modules
            ]
        return parts

    def _versions(self, model: nn.Module, learning: str | None) -> dict[str, tuple]:
        """The stages before the one that learns with what their values depend on."""
        versions: dict[str, tuple] = {}
        version: tuple = ()
        stages = itertools.takewhile(lambda x: x[0] != learning, self.staged(model).items())
        for name, parts in stages:
            version += tuple(weights_version(p, self.tune.owns, recurse) for p, recurse in parts)
            versions[name] = (name, hash(version))
        return versions

    def _first_learning(self, model: nn.Module) -> str | None:
        """The first stage that learns; None if there is none."""
        for name, parts in self.staged(model).items():
            if not all(self._is_fixed(part, recurse) for part, recurse in parts):
                return name
        return None

    def _is_fixed(self, part: nn.Module, recurse: bool) -> bool:
        """Whether a part gives the same for an image whenever it is asked, until it is written to.

        The whole model is in eval mode but for dropout where a method wants it.
        """
        modules = part.modules() if recurse else (part,)
        return not any(m.training for m in modules) and not self.tune.learns(part, recurse)


def _alive(parts: list) -> Iterator[tuple[nn.Module, list[str]]]:
    return ((find(), names) for find, names in parts)


def _written(staged: Iterable[tuple[str, list]]) -> tuple:
    """Which tensors these stages hold, and how often each was written to."""
    values = (
        part._parameters.get(name, part._buffers.get(name))
        for _, parts in staged
        for part, names in _alive(parts)
        for name in names
    )
    return tuple((id(value), value._version) for value in values if value is not None)


def _agree(weights: tuple, others: tuple) -> bool:
    """Whether two readings say the same of the stages that both are about."""
    return all(a == b for a, b in zip(weights, others))
