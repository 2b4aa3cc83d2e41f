"""What is in an adapter: its groups, how much each changes, and what it weighs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmgslora.lora.stored import StoredAdapter, norms


@dataclass(frozen=True)
class GroupContent:
    """One group of an adapter.

    Attributes:
        name: The transformer block; of an adapter of PEFT, the module that holds the layers.
        layers: How many layers the group has.
        kept: How many of them the file holds; the others are zero.
        norm_b: Norm of all B together, the one that group sparsity shrinks.
        norm_update: Norm of all s B A together, what is added to the weights.
        parameters: How many numbers the file holds for it.
    """

    name: str
    layers: int
    kept: int
    norm_b: float
    norm_update: float
    parameters: int


def contents(adapter: StoredAdapter) -> list[GroupContent]:
    """The groups of an adapter, those that were left out as well if its metadata names them."""
    groups = adapter.metadata.get('groups')
    if groups is None:
        groups = {}
        for name in adapter.pairs:
            groups.setdefault(name.rpartition('.')[0] or name, []).append(name)
    found = []
    for group, names in groups.items():
        kept = [name for name in names if name in adapter.pairs]
        pairs = [norms(adapter.pairs[name], adapter.scale(name)) for name in kept]
        norm_b, norm_update = (
            math.hypot(*values) for values in (zip(*pairs) if pairs else ((), ()))
        )
        numbers = sum(matrix.numel() for name in kept for matrix in adapter.pairs[name])
        found.append(GroupContent(group, len(names), len(kept), norm_b, norm_update, numbers))
    return found


def held_whole(adapter: StoredAdapter) -> dict[str, tuple[int, int]]:
    """How many tensors and numbers the file holds whole, by the module that was replaced.

    Those of no such module, parameters that were trained themselves, are under ''.
    """
    found: dict[str, tuple[int, int]] = {}
    for key, value in adapter.whole.items():
        module = next((name for name in adapter.modules if key.startswith(f'{name}.')), '')
        tensors, numbers = found.get(module, (0, 0))
        found[module] = tensors + 1, numbers + value.numel()
    return found


def weight_file_size(adapter: StoredAdapter) -> int:
    """Bytes of the adapter's weights on disk."""
    return sum(path.stat().st_size for path in adapter.folder.glob('*.safetensors'))
