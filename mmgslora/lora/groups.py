"""Groups of LoRA matrices: the units that group sparsity switches off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.lora.adapter import Adapter
from mmgslora.lora.inject import find_blocks, require_lora_layers


@dataclass(eq=False)
class LoRAGroup:
    """LoRA matrices that are kept or switched off together.

    Attributes:
        name: Where the group stands in the model, e.g. ``'encoder.layers.0.ffn'``.
        A: The ``lora_A`` of its layers; empty for a single ``B``.
        B: The ``lora_B`` of its layers, in the order of ``A``; empty for a single ``A``.
        layers: Its layers.
    """

    name: str
    A: list[nn.Parameter]
    B: list[nn.Parameter]
    layers: list[Adapter] = field(default_factory=list)

    def hold(self) -> None:
        """Keep a group at zero until its adapters are fresh again: its layers are the plain ones.

        A group that shares its layers with another, as single matrices do, is not held.
        """
        for layer in self.layers:
            layer.held = True

    def norm(self, eps: float = 0.0) -> Tensor:
        """Joint norm sqrt(sum ||A||_F^2 + sum ||B||_F^2 + eps), the penalised quantity.

        Args:
            eps: Put under the root. With 0 the gradient is NaN where all matrices are zero.
                Defaults to 0.

        Returns:
            Tensor: Scalar, float32 or wider, with its graph.
        """
        return (squared_norms(self.A + self.B).sum() + eps).sqrt()

    def norm_B(self) -> Tensor:
        """Joint norm sqrt(sum ||B||_F^2); exactly 0 for a group that is switched off.

        Returns:
            Tensor: Scalar, float32 or wider, with its graph.

        Raises:
            ForgettingError: If the group holds no ``B``.
        """
        if not self.B:
            raise ForgettingError(f'LoRA group {self.name!r} holds no B matrix.')
        return squared_norms(self.B).sum().sqrt()


def squared_norms(matrices: Sequence[Tensor]) -> Tensor:
    """``||matrix||_F^2`` of each, (n,), float32 or wider: half precision overflows or vanishes."""
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in matrices]
    return torch.stack([x.sum() for x in torch._foreach_mul(wide, wide)])


def discover_groups(model: nn.Module, by: str = 'block') -> list[LoRAGroup]:
    """Group the LoRA matrices of a model by where they stand.

    Args:
        model: A model with LoRA layers.
        by: ``'block'`` takes all LoRA matrices of one transformer block, the paper's main
            grouping; LoRA layers outside every block go together by their parent module.
            ``'module'`` takes A and B of one Linear, ``'matrix'`` each matrix alone.
            Defaults to ``'block'``.

    Returns:
        list[LoRAGroup]: In model order. A block's group is named after the block and the
        first part below it that all its LoRA layers share, if they do: MMDetection gives
        ``encoder.layers.0.ffn``, ``nn.TransformerEncoderLayer`` gives ``layers.0``.

    Raises:
        ForgettingError: If the model has no LoRA layers, or ``by`` is none of the three.
    """
    layers = require_lora_layers(model)
    if by == 'block':
        return _by_block(model, layers)
    if by == 'module':
        return [LoRAGroup(name, [m.lora_A], [m.lora_B], [m]) for name, m in layers.items()]
    if by == 'matrix':
        groups = []
        for name, layer in layers.items():
            groups.append(LoRAGroup(f'{name}.lora_A', [layer.lora_A], []))
            groups.append(LoRAGroup(f'{name}.lora_B', [], [layer.lora_B]))
        return groups
    raise ForgettingError(
        f"Cannot group LoRA matrices by {by!r}; allowed are 'block', 'module' and 'matrix'."
    )


def _by_block(model: nn.Module, layers: dict[str, Adapter]) -> list[LoRAGroup]:
    blocks = find_blocks(model)
    members: dict[str, list[str]] = {}
    for name in layers:
        parent = name.rpartition('.')[0]
        inside = [block for block in blocks if not block or name.startswith(f'{block}.')]
        members.setdefault(inside[0] if inside else parent, []).append(name)

    groups = []
    for place, names in members.items():
        parts = {name[len(place) :].lstrip('.').split('.')[0] for name in names}
        # Outside a block the parent is the place, and its Linears share no part below it.
        shared = parts.pop() if place in blocks and len(parts) == 1 else ''
        group_name = '.'.join(part for part in (place, shared) if part)
        groups.append(
            LoRAGroup(
                group_name or type(model).__name__,
                [layers[name].lora_A for name in names],
                [layers[name].lora_B for name in names],
                [layers[name] for name in names],
            )
        )
    return groups
