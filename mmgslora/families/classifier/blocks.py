"""What the transformer blocks of a classifier make of an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from mmgslora.lora import find_blocks

_BLOCKS: WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = WeakKeyDictionary()


def block_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks as ``block.0``, ``block.1`` and so on, looked for once in a model."""
    if model not in _BLOCKS:
        names = enumerate(find_blocks(model))
        _BLOCKS[model] = {f'block.{i}': model.get_submodule(name) for i, name in names}
    return _BLOCKS[model]


@contextmanager
def after_blocks(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within, collect a row (D,) per image after each transformer block; none without blocks.

    It is the class token, the first one, if the model has such a token, and otherwise the mean over
    all positions. Keys are those of :func:`block_modules`.
    """
    seen: dict[str, Tensor] = {}
    names = [name.rpartition('.')[2] for name, _ in model.named_parameters()]
    has_token = not {'class_token', 'cls_token'}.isdisjoint(names)
    handles = []
    for name, block in block_modules(model).items():

        def keep(block: nn.Module, _, output: Any, name: str = name) -> None:
            seen[name] = _rows(output, block, has_token)

        handles.append(block.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _rows(output: Any, block: nn.Module, has_token: bool) -> Tensor:
    """(n, D) of what a block gives: (n, t, D), (n, h, w, D) or (n, D, h, w), or a tuple of it."""
    output = output[0] if isinstance(output, (tuple, list)) else output
    if has_token and output.dim() == 3:
        return output[:, 0]
    widths = {layer.in_features for layer in block.modules() if isinstance(layer, nn.Linear)}
    width_axis = output.dim() - 1 if output.shape[-1] in widths else 1
    axes = [axis for axis in range(1, output.dim()) if axis != width_axis]
    return output.mean(axes) if axes else output
