"""What tells the weights of one module from those of another, or from its own of before."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Callable, Hashable, Mapping

from torch import Tensor, nn

from mmgslora.families.content import content_of


def weights_version(
    module: nn.Module, added: Callable[[str], bool], recurse: bool = True
) -> Hashable:
    """Changes whenever a weight of a module is written to, as by merging or loading.

    What learns nothing is known by its content, so that a copy has the version of what it is a copy
    of; it is read anew only when it was written to. What learns is written to at every step and
    just counts.

    Args:
        module: The module.
        added: Whether an entry of its state dict is a tuner's, and does not count.
        recurse: Whether the modules inside count. Defaults to True.
    """
    entries = {
        name: value
        for name, value in (
            *module.named_parameters(recurse=recurse),
            *module.named_buffers(recurse=recurse),
        )
        if not added(name)
    }
    writes = tuple((id(value), value._version) for value in entries.values())
    if any(value.requires_grad for value in entries.values()):
        # Not id() alone: a module that is gone leaves its own to the next one.
        return _NUMBERS.setdefault(module, next(_COUNT)), writes
    read = _READ.setdefault(module, {})
    if read.get(recurse, (None,))[0] != writes:
        read[recurse] = writes, _content_of_all(type(module), entries)
    return read[recurse][1]


def _content_of_all(kind: type, entries: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256(kind.__qualname__.encode())
    for name, value in entries.items():
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(content_of(value))
    return digest.digest()


_COUNT = itertools.count()
_NUMBERS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_READ: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()
