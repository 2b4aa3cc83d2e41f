"""The pieces that methods share: bounded ascent and group sparsity."""

from mmgslora.losses.bounded_ascent import bounded_ascent
from mmgslora.losses.group_sparsity import group_penalty, proximal_step, zero_ratio

__all__ = ['bounded_ascent', 'group_penalty', 'proximal_step', 'zero_ratio']
