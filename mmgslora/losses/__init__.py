"""The pieces that methods and families share: losses, and means over processes."""

from mmgslora.losses.bounded_ascent import bounded_ascent
from mmgslora.losses.boxes import box_iou
from mmgslora.losses.group_sparsity import group_penalty, proximal_step, zero_ratio
from mmgslora.losses.over_processes import (
    joint_weighted_mean,
    mean_over_processes,
    mean_with_local_grad,
)
from mmgslora.losses.prototypes import prototype_divergence

__all__ = [
    'bounded_ascent',
    'box_iou',
    'group_penalty',
    'mean_with_local_grad',
    'joint_weighted_mean',
    'mean_over_processes',
    'prototype_divergence',
    'proximal_step',
    'zero_ratio',
]
