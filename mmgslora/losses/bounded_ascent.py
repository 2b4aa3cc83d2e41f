"""The forgetting loss: push a loss up, but not beyond a bound."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bounded_ascent(loss: Tensor, bound: float) -> Tensor:
    """Forgetting loss of GS-LoRA (arXiv 2403.11530): minimise it to raise a loss to a bound.

    .. math:: \\max(0, \\text{bound} - \\text{loss})

    The derivative by ``loss`` is -1 below the bound and 0 at and above it, so what is
    forgotten well enough pulls no more. The paper's form is one hinge on the mean of a batch:
    give the mean. Given a tensor, each element has a hinge of its own.

    Args:
        loss: Any shape; a scalar for the paper's form.
        bound: Where ascent stops. The authors' code has 105 (continual) and 110 (single-step)
            for mean cross-entropy, and 15 for twice the focal loss of detection.

    Returns:
        Tensor: Same shape as ``loss``.
    """
    return F.relu(bound - loss)
