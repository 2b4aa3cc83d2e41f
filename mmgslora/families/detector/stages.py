"""Which stages of a detector give the same for an image whenever they are asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

from mmdet.models.layers import DetrTransformerDecoderLayer
from torch import nn

from mmgslora.families.weights import weights_version
from mmgslora.tuning import Tuner

_TRUNK = ('backbone', 'neck')


class _Known(NamedTuple):
    """What was read off a detector in one of its modes.

    Attributes:
        weights: Which weights its fixed stages had, in the order of the stages.
        fixed: Those stages, with what their values depend on.
    """

    weights: tuple
    fixed: dict[str, tuple]


class Stages:
    """The stages of a DETR-like detector: trunk, encoder, decoder layers, head (ours).

    A decoder layer's attention is a stage of its own where it can be told apart.

    Args:
        tune: What of the detector may change.
        written_to: Called when the weights of a detector are others than before, with all entries
            that :meth:`fixed` can still give for it and the other detectors.
    """

    def __init__(self, tune: Tuner, written_to: Callable[[set[tuple]], None]) -> None:
        self.tune, self.written_to = tune, written_to
        self._parts: WeakKeyDictionary[nn.Module, dict[str, list]] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[nn.Module, dict[tuple, _Known]] = WeakKeyDictionary()
        self._learning: WeakKeyDictionary[nn.Module, dict[tuple, str | None]] = WeakKeyDictionary()

    def fixed(self, detector: nn.Module) -> dict[str, tuple]:
        """The stages up to the first that learns, each with what its values depend on.

        Args:
            detector: The detector, or a teacher of it.

        Returns:
            Of 'trunk', 'encoder', 'decoder.0.attention', 'decoder.0', ... and 'head' those that do
            not learn, in this order. An entry is another one as soon as a weight was written to.
        """
        parts = self._parts.setdefault(detector, {}) or self._read(detector)
        # At every step: what was worked out is looked up by the modes and versions it depends on.
        learns = self.tune.learns
        modes = tuple(
            (part.training, learns(part, recurse=False))
            for inside in parts.values()
            for part, _ in _alive(inside)
        )
        learning = self._learning.setdefault(detector, {})
        if modes not in learning:
            learning[modes] = self._first_learning(detector)
        weights = _written(itertools.takewhile(lambda x: x[0] != learning[modes], parts.items()))
        known = self._known.setdefault(detector, {})
        if modes not in known or known[modes].weights != weights:
            fixed = self._versions(detector, learning[modes])
            self._known[detector] = known = {
                other: x for other, x in known.items() if _agree(x.weights, weights)
            }
            known[modes] = _Known(weights, fixed)
            all_known = (x for by_mode in self._known.values() for x in by_mode.values())
            self.written_to({key for x in all_known for key in x.fixed.values()})
        return known[modes].fixed

    def _read(self, detector: nn.Module) -> dict[str, list]:
        """The modules of each stage, and which of their entries are the detector's own."""
        staged, others = _staged(detector)
        inside = {
            name: [module for part in parts for module in part.modules()]
            for name, parts in staged.items()
        }
        inside['encoder'] += others
        parts = self._parts[detector]
        for name, modules in inside.items():
            parts[name] = [  # weak, or a teacher would keep itself alive
                (ref(m), [x for x in (*m._parameters, *m._buffers) if not self.tune.owns(x)])
                for m in modules
            ]
        return parts

    def _versions(self, detector: nn.Module, learning: str | None) -> dict[str, tuple]:
        """The stages before the one that learns with what their values depend on."""
        staged, others = _staged(detector)
        owns = self.tune.owns
        versions: dict[str, tuple] = {}
        version: tuple = ()
        for name, parts in itertools.takewhile(lambda x: x[0] != learning, staged.items()):
            if name == 'encoder':  # which reads embeddings of levels, queries and the like, too
                version += tuple(weights_version(m, owns, recurse=False) for m in others)
            version += tuple(weights_version(part, owns) for part in parts)
            versions[name] = (name, hash(version))
        return versions

    def _first_learning(self, detector: nn.Module) -> str | None:
        """The first stage that learns; None if there is none."""
        staged, others = _staged(detector)
        for name, parts in staged.items():
            if name == 'encoder' and any(not self._is_fixed(m, recurse=False) for m in others):
                return name
            if not all(self._is_fixed(part) for part in parts):
                return name
        return None

    def _is_fixed(self, part: nn.Module, recurse: bool = True) -> bool:
        """Whether a part gives the same for an image whenever it is asked, until it is written to.

        The whole model is in eval mode but for dropout where a method wants it.
        """
        modules = part.modules() if recurse else (part,)
        return not any(m.training for m in modules) and not self.tune.learns(part, recurse)


def decoder_stages(detector: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    """The modules of every decoder layer's stages, that which gives a stage's output last.

    The attention is what comes before the feed-forward network; a layer with a forward pass of its
    own, of which that is not known, is one stage.
    """
    stages: dict[str, tuple[nn.Module, ...]] = {}
    for i, layer in enumerate(detector.decoder.layers):
        if type(layer).forward is DetrTransformerDecoderLayer.forward:
            attention = layer.self_attn, layer.norms[0], layer.cross_attn, layer.norms[1]
            stages[f'decoder.{i}.attention'] = attention
        stages[f'decoder.{i}'] = (layer,)
    return stages


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


def _staged(detector: nn.Module) -> tuple[dict[str, list[nn.Module]], list[nn.Module]]:
    """The modules of each stage in order, and those of none."""
    staged = {'trunk': [getattr(detector, name) for name in _TRUNK if hasattr(detector, name)]}
    staged['encoder'] = [detector.encoder]
    staged.update({name: list(modules) for name, modules in decoder_stages(detector).items()})
    if not getattr(detector, 'as_two_stage', False):  # it would choose what is decoded, too
        staged['decoder.0'].append(detector.bbox_head)
    inside = {p for parts in staged.values() for part in parts for p in part.modules()}
    return {**staged, 'head': []}, [m for m in detector.modules() if m not in inside]
