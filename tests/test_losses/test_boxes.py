"""Overlaps of boxes with round numbers."""

import torch

from mmgslora.losses import box_iou


def test_overlaps_by_hand():
    ours = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.0, 0.0]])
    theirs = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.75, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5]])
    wanted = [[1, 0.5, 0.25], [0.5, 0, 0.125 / 0.625], [0, 0, 0]]
    assert torch.allclose(box_iou(ours, theirs), torch.tensor(wanted))
    assert box_iou(ours, theirs[:0]).shape == (3, 0)
