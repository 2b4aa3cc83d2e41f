"""Features of images that need not be computed twice."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn


class FeatureCache:
    """Tensors by key, bounded in bytes; the least recently used goes first (ours).

    Args:
        max_bytes: What all tensors together may take; 0 keeps nothing.
    """

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The tensors of a key, computed without gradient where they are not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        with torch.no_grad():
            found = compute()
        self._kept[key] = found
        self.bytes += _bytes(found)
        while self.bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= _bytes(dropped)
        return found


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def content_of(image: Tensor) -> bytes:
    """What identifies an image as a model sees it, whichever file and augmentation it came from."""
    data = image.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(data.numpy(), digest_size=16).digest()


def weights_version(module: nn.Module, added: Callable[[str], bool]) -> tuple[int, int]:
    """Changes whenever a weight of a module is written to, as by merging or loading.

    Args:
        module: The module.
        added: Whether an entry of its state dict is a tuner's, and does not count.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    return id(module), sum(value._version for name, value in named if not added(name))
