"""Boxes as the DETR family predicts them: centre, width and height."""

from __future__ import annotations

import torch
from torch import Tensor


def box_iou(ours: Tensor, theirs: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        ours: (m, 4) centre x, centre y, width, height.
        theirs: (n, 4) likewise, in the same unit.

    Returns:
        Tensor: (m, n), 0 where both boxes are empty.
    """
    (low, high), (their_low, their_high) = _corners(ours), _corners(theirs)
    sides = torch.minimum(high[:, None], their_high) - torch.maximum(low[:, None], their_low)
    inside = sides.clamp(min=0).prod(-1)
    either = (high - low).prod(-1)[:, None] + (their_high - their_low).prod(-1) - inside
    return inside / either.clamp(min=torch.finfo(inside.dtype).tiny)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    centre, size = boxes[:, :2], boxes[:, 2:]
    return centre - size / 2, centre + size / 2
