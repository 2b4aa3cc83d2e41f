"""What identifies the weights of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmgslora.lora.adapter import is_of_adapter


def fingerprint(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of every weight and buffer but the LoRA matrices.

    Two models have one fingerprint only if they give the same outputs with their adapters off.

    Args:
        model: The plain model, with or without LoRA layers, or its state dict; give it, not a
            wrapper around it.

    Returns:
        str: 64 hexadecimal digits.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if is_of_adapter(name):
            continue
        digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()
