"""What identifies the weights of a model."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of every weight and buffer but the LoRA matrices.

    Two models have one fingerprint only if they give the same outputs with their adapters off.

    Args:
        model: The plain model, with or without LoRA layers; give it, not a wrapper around it.

    Returns:
        str: 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if 'lora_' in name:
            continue
        digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()
