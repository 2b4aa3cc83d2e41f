"""Deformable attention under bfloat16, for which mmcv has no operator: in float32."""

from __future__ import annotations

import torch
from mmcv.ops import multi_scale_deform_attn
from torch import Tensor


class _Attention(multi_scale_deform_attn.MultiScaleDeformableAttnFunction):
    """The function that mmcv calls on a GPU, be its operators compiled or stood in for.

    It would round the sampling locations to the type of the values, in bfloat16 by up to 1/512 of
    the image.
    """

    @classmethod
    def apply(cls, value: Tensor, *others: Tensor | int) -> Tensor:
        shapes, starts, locations, weights, im2col_step = others
        dtype = value.dtype
        if dtype == torch.bfloat16:
            value, locations, weights = (x.float() for x in (value, locations, weights))
        return super().apply(value, shapes, starts, locations, weights, im2col_step).to(dtype)


def attend_in_float32() -> None:
    """Have mmcv's layer compute in float32 what it is given in bfloat16."""
    multi_scale_deform_attn.MultiScaleDeformableAttnFunction = _Attention
