"""Boxes as the DETR family predicts them: centre, width and height."""

from __future__ import annotations

from torch import Tensor
from torchvision import ops


def box_iou(ours: Tensor, theirs: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        ours: (m, 4) centre x, centre y, width, height.
        theirs: (n, 4) likewise, in the same unit.

    Returns:
        Tensor: (m, n), 0 where both boxes are empty.
    """
    corners = (ops.box_convert(boxes, 'cxcywh', 'xyxy') for boxes in (ours, theirs))
    return ops.box_iou(*corners).nan_to_num(0)
