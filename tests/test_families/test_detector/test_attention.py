"""Deformable attention as a GPU runs it under bfloat16, here on the CPU."""

import pytest
import torch
from mmcv.ops import multi_scale_deform_attn
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

import mmgslora.register  # noqa: F401  as a config does: that is enough
from mmgslora import compat

pytestmark = pytest.mark.skipif(compat.has_compiled_mmcv(), reason='a compiled mmcv needs a GPU')


def attention(dtype):
    """What mmcv's layer calls, the values and weights as autocast makes them; and its inputs."""
    generator = torch.Generator().manual_seed(0)
    shapes, starts = torch.tensor([[48, 64], [24, 32]]), torch.tensor([0, 48 * 64])
    value = torch.rand(1, 48 * 64 + 24 * 32, 2, 3, generator=generator).to(dtype)
    locations = torch.rand(1, 5, 2, 2, 4, 2, generator=generator)  # in float32: they are a sum
    weights = torch.rand(1, 5, 2, 2, 4, generator=generator).to(dtype)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    function = multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    return function.apply(value, shapes, starts, locations, weights, 64), shapes, inputs


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_only_the_result_is_rounded(dtype):
    output, shapes, inputs = attention(dtype)
    theirs = multi_scale_deformable_attn_pytorch(
        inputs[0].float(), shapes, inputs[1], inputs[2].float()
    )
    assert output.dtype == dtype and torch.equal(output, theirs.to(dtype))
    direction = torch.linspace(-1, 1, output.numel()).view_as(output).to(dtype)
    found = torch.autograd.grad(output, inputs, direction)
    expected = torch.autograd.grad(theirs, inputs, direction.float())
    for one, other, given in zip(found, expected, inputs):
        assert one.dtype == given.dtype
        torch.testing.assert_close(one, other)


def test_under_autocast():
    with torch.autocast('cpu', torch.bfloat16):
        output, *_ = attention(torch.bfloat16)
    assert torch.equal(output, attention(torch.bfloat16)[0])
