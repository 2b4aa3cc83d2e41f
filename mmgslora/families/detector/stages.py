"""Which stages of a detector give the same for an image whenever they are asked."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from mmgslora.families.cache import weights_version
from mmgslora.tuning import Tuner

_TRUNK = ('backbone', 'neck')
_STATES = 4
"""How many states of a detector are remembered: in a step it learns, and is its own teacher."""


class Stages:
    """The stages of a DETR-like detector: trunk, encoder, each decoder layer, head (ours).

    Args:
        tune: What of the detector may change.
    """

    def __init__(self, tune: Tuner) -> None:
        self.tune = tune
        self._found: WeakKeyDictionary[nn.Module, dict[tuple, dict]] = WeakKeyDictionary()
        self._modules: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()

    def fixed(self, detector: nn.Module) -> dict[str, tuple]:
        """The stages up to the first that learns, each with what its values depend on.

        Args:
            detector: The detector, or a teacher of it.

        Returns:
            Of 'trunk', 'encoder', 'decoder.0', ... and 'head' those that do not learn, in this
            order. An entry is another one as soon as a weight was written to.
        """
        found, state = self._found.setdefault(detector, {}), self._state(detector)
        if state not in found:
            while len(found) >= _STATES:
                del found[next(iter(found))]
            found[state] = self._look(detector)
        return found[state]

    def _state(self, detector: nn.Module) -> tuple:
        """All that the answer depends on, read off in a fraction of the time."""
        if detector not in self._modules:
            self._modules[detector] = [
                (part, [n for n in names if not self.tune.owns(n)])
                for part in detector.modules()
                for names in [[*part._parameters, *part._buffers]]
            ]
        learns = self.tune.learns
        state: list = []
        for part, names in self._modules[detector]:
            state.append((part.training, learns(part, recurse=False)))
            for name in names:
                value = part._parameters.get(name, part._buffers.get(name))
                if value is not None:
                    state.append((id(value), value._version))
        return tuple(state)

    def _look(self, detector: nn.Module) -> dict[str, tuple]:
        trunk = [getattr(detector, name) for name in _TRUNK if hasattr(detector, name)]
        layers = dict(enumerate(detector.decoder.layers))
        staged = {'trunk': trunk, 'encoder': [detector.encoder]}
        staged.update({f'decoder.{i}': [layer] for i, layer in layers.items()})
        inside = {p for parts in staged.values() for part in parts for p in part.modules()}
        others = [m for m in detector.modules() if m not in inside]
        owns = self.tune.owns
        fixed: dict[str, tuple] = {}
        version: tuple = ()
        for name, parts in staged.items():
            if name == 'encoder':  # which reads embeddings of levels, queries and the like, too
                if any(not self._is_fixed(m, recurse=False) for m in others):
                    return fixed
                version += tuple(weights_version(m, owns, recurse=False) for m in others)
            if not all(self._is_fixed(part) for part in parts):
                return fixed
            version += tuple(weights_version(part, owns) for part in parts)
            fixed[name] = (name, hash(version))
        fixed['head'] = ('head', hash(version))
        return fixed

    def _is_fixed(self, part: nn.Module, recurse: bool = True) -> bool:
        """Whether a part gives the same for an image whenever it is asked, until it is written to.

        The whole model is in eval mode but for dropout where a method wants it.
        """
        modules = part.modules() if recurse else (part,)
        return not any(m.training for m in modules) and not self.tune.learns(part, recurse)
