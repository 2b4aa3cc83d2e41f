"""What identifies an image, or any other tensor, by what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

_ROW = 1024  # words of eight bytes


class Identified:
    """Images (c, h, w) of a batch, with what identifies each, worked out when first asked for."""

    def __init__(self, images: Sequence[Tensor] | Tensor) -> None:
        self.images = images

    @cached_property
    def contents(self) -> list[tuple[Hashable, ...]]:
        """What the values of a model depend on of each image, and of autocast."""
        with torch.no_grad():
            corner = self.images[0][0, :1, :1]
            computed_in = torch.mm(corner, corner).dtype
        return [(content_of(x), tuple(x.shape), x.dtype, computed_in) for x in self.images]


def content_of(tensor: Tensor) -> bytes:
    """What tells a tensor from others of its shape and type: SHA-256 of its bytes.

    On a GPU it is :func:`sums_of`, for which they need not leave it.
    """
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy()).digest() if data.is_cpu else sums_of(data)


def sums_of(data: Tensor) -> bytes:
    r"""Two numbers of 64 bits that depend on every byte and its place (ours).

    They are sums of the words of eight bytes :math:`x_{ij}`, in rows of 1024 and filled up with
    zeros, weighed with odd random numbers,

    .. math:: h_k = \sum_i u_{ki} \sum_j v_{kj} x_{ij} \mod 2^{64}.

    Args:
        data: (n,) bytes, uint8.
    """
    rows = -(-len(data) // (8 * _ROW))
    words = data.new_zeros(rows * 8 * _ROW)
    words[: len(data)] = data
    words = words.view(torch.int64).view(rows, _ROW)
    words ^= words >> 32  # round numbers end in zeros, which a product would not lift
    of_rows, of_words = _weights(rows, data.device), _weights(_ROW, data.device)
    sums = [((words * v).sum(1) * u).sum() for u, v in zip(of_rows, of_words)]
    return torch.stack(sums).cpu().numpy().tobytes()


@lru_cache(maxsize=64)
def _weights(count: int, device: torch.device) -> Tensor:
    """(2, count) odd numbers, the same ones for a count."""
    generator = torch.Generator().manual_seed(count)
    numbers = torch.randint(-(2**62), 2**62, (2, count), generator=generator)
    return (2 * numbers + 1).to(device)
