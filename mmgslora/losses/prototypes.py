"""Embeddings and the prototypes of their classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype_divergence(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    r"""Distance of GS-LoRA++ (arXiv 2501.09705) between embeddings and prototypes.

    .. math:: D(x) = \mathrm{KL}(\mathrm{softmax}(p_x) \,\|\, \mathrm{softmax}(e_x))

    The softmax runs over the D feature dimensions, at temperature 1, as in the authors' code.

    Args:
        embeddings: (n, D).
        prototypes: (n, D), the prototype of each embedding's own class.

    Returns:
        Tensor: (n,) in nats, float32 or wider.
    """
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    ours = embeddings.to(dtype).log_softmax(-1)
    theirs = prototypes.to(dtype).log_softmax(-1)
    return F.kl_div(ours, theirs, log_target=True, reduction='none').sum(-1)
