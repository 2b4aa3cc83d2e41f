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


def class_mean_shift(moves: Tensor, weights: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How far the mean move of each class is from the wanted one (ours).

    A linear probe tells classes apart exactly as far as their mean embeddings differ (Belrose et
    al. 2023, arXiv 2306.03819), so it is means that are moved: what varies within a class may stay.
    Given what moved every embedding, the embedding now less the teacher's, the noise of which
    objects are in the batch cancels.

    Args:
        moves: (m, D) embedding now minus embedding before, of each prediction.
        weights: (m, k) how much each prediction counts for each class.
        wanted: (k, D) the move that each class should make on average.

    Returns:
        (k, D) weighted sum of the moves of each class less the wanted one, and (k,) the sum of its
        weights. Their quotient is the distance of the means.
    """
    dtype = torch.promote_types(moves.dtype, torch.float32)
    moves, weights, wanted = (x.to(dtype) for x in (moves, weights, wanted))
    counts = weights.sum(0)
    return weights.T @ moves - counts[:, None] * wanted, counts
