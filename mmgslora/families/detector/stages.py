"""Which stages of a detector give the same for an image whenever they are asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, ref

from torch import nn

from mmgslora.families.weights import weights_version
from mmgslora.tuning import Tuner

_TRUNK = ('backbone', 'neck')


@dataclass
class _Known:
    """What was read off a detector.

    Attributes:
        weights: Which weights it had.
        versions: Every stage, with what its values depend on.
        fixed: By what was learning, the stages before that.
    """

    weights: tuple
    versions: dict[str, tuple]
    fixed: dict[tuple, dict[str, tuple]] = field(default_factory=dict)


class Stages:
    """The stages of a DETR-like detector: trunk, encoder, each decoder layer, head (ours).

    Args:
        tune: What of the detector may change.
        written_to: Called when the weights of a detector are others than before, with all entries
            that :meth:`fixed` can still give for it and the other detectors.
    """

    def __init__(self, tune: Tuner, written_to: Callable[[set[tuple]], None]) -> None:
        self.tune, self.written_to = tune, written_to
        self._parts: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()

    def fixed(self, detector: nn.Module) -> dict[str, tuple]:
        """The stages up to the first that learns, each with what its values depend on.

        Args:
            detector: The detector, or a teacher of it.

        Returns:
            Of 'trunk', 'encoder', 'decoder.0', ... and 'head' those that do not learn, in this
            order. An entry is another one as soon as a weight was written to.
        """
        weights, modes = self._state(detector)
        known = self._known.get(detector)
        if known is None or known.weights != weights:
            known = self._known[detector] = _Known(weights, self._versions(detector))
            self.written_to({key for x in self._known.values() for key in x.versions.values()})
        if modes not in known.fixed:
            learning = self._first_learning(detector)
            stages = itertools.takewhile(lambda item: item[0] != learning, known.versions.items())
            known.fixed[modes] = dict(stages)
        return known.fixed[modes]

    def _state(self, detector: nn.Module) -> tuple[tuple, tuple]:
        """All that the answer depends on, read off in a fraction of the time."""
        if detector not in self._parts:
            self._parts[detector] = [  # weak, or a teacher would keep itself alive
                (ref(part), [name for name in names if not self.tune.owns(name)])
                for part in detector.modules()
                for names in [[*part._parameters, *part._buffers]]
            ]
        learns = self.tune.learns
        weights, modes = [], []
        for find, names in self._parts[detector]:
            part = find()
            modes.append((part.training, learns(part, recurse=False)))
            for name in names:
                value = part._parameters.get(name, part._buffers.get(name))
                if value is not None:
                    weights.append((id(value), value._version))
        return tuple(weights), tuple(modes)

    def _versions(self, detector: nn.Module) -> dict[str, tuple]:
        """Every stage with what its values depend on."""
        staged, others = _staged(detector)
        owns = self.tune.owns
        versions: dict[str, tuple] = {}
        version: tuple = ()
        for name, parts in staged.items():
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


def _staged(detector: nn.Module) -> tuple[dict[str, list[nn.Module]], list[nn.Module]]:
    """The modules of each stage in order, and those of none."""
    staged = {'trunk': [getattr(detector, name) for name in _TRUNK if hasattr(detector, name)]}
    staged['encoder'] = [detector.encoder]
    staged.update({f'decoder.{i}': [layer] for i, layer in enumerate(detector.decoder.layers)})
    if not getattr(detector, 'as_two_stage', False):  # it would choose what is decoded, too
        staged['decoder.0'].append(detector.bbox_head)
    inside = {p for parts in staged.values() for part in parts for p in part.modules()}
    return {**staged, 'head': []}, [m for m in detector.modules() if m not in inside]
