"""What the transformer blocks of a classifier make of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmgslora.lora import find_blocks

_BLOCKS: WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = WeakKeyDictionary()
_READ: WeakKeyDictionary[nn.Module, tuple[int, slice]] = WeakKeyDictionary()
_WIDTHS: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


def block_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks as ``block.0``, ``block.1`` and so on, looked for once in a model."""
    if model not in _BLOCKS:
        names = enumerate(find_blocks(model))
        _BLOCKS[model] = {f'block.{i}': model.get_submodule(name) for i, name in names}
    return _BLOCKS[model]


@contextmanager
def after_blocks(
    model: nn.Module, images: Sequence[Tensor] | Tensor
) -> Iterator[dict[str, Tensor]]:
    """Within, collect a row (D,) per image after each transformer block; none without blocks.

    It is the class token, if the model has one and reads it in the end, and otherwise the mean over
    the positions that it reads, as of a BEiT's patches. After blocks that give another number of
    positions than the last, such as a CaiT's before there is a token, it is the mean over all.
    Keys are those of :func:`block_modules`.

    Args:
        model: The classifier.
        images: What it is going to be called with; the first shows, once, what it reads.
    """
    seen: dict[str, Tensor] = {}
    if model not in _READ:
        _READ[model] = _positions_read(model, images[:1])
    handles = []
    for name, block in block_modules(model).items():

        def keep(block: nn.Module, _, output: Any, name: str = name) -> None:
            seen[name] = _rows(output, block, *_READ[model])

        handles.append(block.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _positions_read(model: nn.Module, image: Sequence[Tensor] | Tensor) -> tuple[int, slice]:
    """How many positions the last block gives, and from which to which of them it is that count.

    Those count that have a part in the embedding, and of a class token and others only the token.
    """
    given: list[Tensor] = []

    def cut(_: nn.Module, __: tuple, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        given.append((output[0] if several else output).detach().requires_grad_())
        own = given[-1].clone()  # what follows may change it in place
        return (own, *output[1:]) if several else own

    handles = [block.register_forward_hook(cut) for block in block_modules(model).values()]
    devices = [image[0].device] if image[0].is_cuda else []
    try:
        # Dropout, where a method has it, draws from a copy.
        with torch.enable_grad(), torch.random.fork_rng(devices):
            embedding = model(image)[1].flatten().float()
            # Not the plain sum, which a layer norm keeps at zero.
            towards = embedding @ torch.linspace(1, 2, len(embedding), device=embedding.device)
    finally:
        for handle in handles:
            handle.remove()
    if not (given and towards.requires_grad):
        return 0, slice(None)
    for slope in torch.autograd.grad(towards, given, allow_unused=True)[::-1]:
        if slope is None or slope.dim() != 3 or len(slope) != 1 or not slope.any():
            continue
        read = (slope[0] != 0).any(-1).nonzero().flatten().tolist()
        names = {name.rpartition('.')[2] for name, _ in model.named_parameters()}
        last = read[-1] if read[0] or names.isdisjoint({'class_token', 'cls_token'}) else 0
        return slope.shape[1], slice(read[0], last + 1)
    return 0, slice(None)


def _rows(output: Any, block: nn.Module, positions: int = 0, read: slice = slice(None)) -> Tensor:
    """(n, D) of what a block gives: (n, t, D), (n, h, w, D) or (n, D, h, w), or a tuple of it."""
    output = output[0] if isinstance(output, (tuple, list)) else output
    if block not in _WIDTHS:
        linears = (layer for layer in block.modules() if isinstance(layer, nn.Linear))
        _WIDTHS[block] = {layer.in_features for layer in linears}
    width_axis = output.dim() - 1 if output.shape[-1] in _WIDTHS[block] else 1
    axes = [axis for axis in range(1, output.dim()) if axis != width_axis]
    if axes == [1] and output.shape[1] == positions:
        output = output[:, read]
    return output.mean(axes) if axes else output
