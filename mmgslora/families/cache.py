"""Features of images that need not be computed twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable

from torch import Tensor


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

    def find(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """The tensors of a key; None where they are not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(
        self, key: Hashable, tensors: tuple[Tensor, ...], spare: bool = False
    ) -> tuple[Tensor, ...]:
        """Keep tensors without gradient under a key, and give them back.

        Args:
            key: What to find them by.
            tensors: The tensors.
            spare: Whether they were not asked for yet and go first. Defaults to False.
        """
        self.drop(key)
        self._kept[key] = tensors
        self._kept.move_to_end(key, last=not spare)
        self.bytes += _bytes(tensors)
        while self.bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= _bytes(dropped)
        return tensors

    def drop(self, key: Hashable) -> None:
        """Make room, if there is something under this key."""
        self.bytes -= _bytes(self._kept.pop(key, ()))

    def keep_only(self, kinds: Collection[Hashable]) -> None:
        """Drop what is kept under keys, tuples, that begin with none of these."""
        for key in [key for key in self._kept if key[0] not in kinds]:
            self.drop(key)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    """What they take in memory; an expanded tensor takes what it was expanded from."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
