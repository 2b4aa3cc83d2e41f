"""Group sparsity on LoRA: the paper's penalty, and a proximal step that reaches zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.lora.groups import LoRAGroup, squared_norms

_EPS = 1e-12


def group_penalty(groups: Sequence[LoRAGroup]) -> Tensor:
    """Structure loss of GS-LoRA (arXiv 2403.11530): the sum of the groups' joint norms.

    .. math:: \\sum_g \\sqrt{\\|A_g\\|_F^2 + \\|B_g\\|_F^2 + \\text{eps}}

    Each matrix x of group g gets the gradient x / norm_g. ``eps``, 1e-12, is ours: it makes that
    0, not NaN, at a group that is exactly zero. Multiply by alpha outside.

    Args:
        groups: At least one group.

    Returns:
        Tensor: Scalar, float32 or wider.
    """
    return torch.stack([group.norm(_EPS) for group in groups]).sum()


@torch.no_grad()
def proximal_step(groups: Sequence[LoRAGroup], thresholds: Sequence[float]) -> None:
    """Shrink the B matrices of each group together, in place; call it after the optimizer.

    .. math:: B_g \\leftarrow B_g \\max(0, 1 - \\text{threshold}_g / \\|B_g\\|_F)

    This solves min_B 1/2 ||B - B_g||_F^2 + threshold_g ||B||_F exactly. A group at or below its
    threshold becomes exactly zero, and its block is then the original one. ``A`` is left
    alone, so that the group can come back; so are groups without ``B``. Ours, the default of
    this package; the paper has the penalty alone, which never reaches zero.

    Args:
        groups: Groups of LoRA matrices, on one device. Norms are taken in float32 or wider.
        thresholds: One for each group, at least 0; learning rate times alpha.

    Raises:
        ForgettingError: If a threshold is negative or NaN.
    """
    for threshold in thresholds:
        if not threshold >= 0:
            raise ForgettingError(
                f'The threshold of the proximal step is {threshold!r}; it must be 0 or more.'
            )
    # All groups in a dozen small operations: this is done at every step.
    matrices = [matrix for group in groups for matrix in group.B]
    if not matrices:
        return
    squares = squared_norms(matrices)
    rows = [row for row, group in enumerate(groups) for _ in group.B]
    of_group = torch.tensor(rows, device=squares.device)
    # Not index_add_, which sums in any order on a GPU: processes would come to differ.
    own = of_group == torch.arange(len(groups), device=squares.device)[:, None]
    norms = torch.where(own, squares, 0.0).sum(1).sqrt()
    # Written so that it is exactly 0 at the threshold and never 0 / 0; as tensors, so that
    # nothing waits for the GPU.
    above = (norms - norms.new_tensor(thresholds)).clamp(min=0)
    factors = above / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    torch._foreach_mul_(matrices, list(factors[of_group].unbind()))


@torch.no_grad()
def zero_ratio(groups: Sequence[LoRAGroup]) -> float:
    """Return the share of groups whose B matrices are exactly zero, without a tolerance.

    Args:
        groups: Groups of LoRA matrices; those without ``B`` do not count.

    Returns:
        float: 0 to 1.

    Raises:
        ForgettingError: If no group holds a ``B``.
    """
    with_b = [group for group in groups if group.B]
    if not with_b:
        raise ForgettingError('The zero-group ratio needs at least one group with a B matrix.')
    return sum(not any(matrix.any() for matrix in group.B) for group in with_b) / len(with_b)
