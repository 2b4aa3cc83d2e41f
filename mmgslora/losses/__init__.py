"""The pieces that methods share: bounded ascent, group sparsity and prototypes."""

from mmgslora.losses.bounded_ascent import bounded_ascent
from mmgslora.losses.group_sparsity import group_penalty, proximal_step, zero_ratio
from mmgslora.losses.prototypes import class_mean_shift, prototype_divergence

__all__ = [
    'bounded_ascent',
    'class_mean_shift',
    'group_penalty',
    'prototype_divergence',
    'proximal_step',
    'zero_ratio',
]
