"""What is read off after each transformer block."""

import pytest
import torch
from torch import nn

from mmgslora.families.classifier.blocks import _rows, after_blocks
from mmgslora.models import VisionTransformer


@pytest.mark.parametrize(
    'shape, axes', [((2, 5, 8), 1), ((2, 3, 4, 8), (1, 2)), ((2, 8, 3, 4), (2, 3)), ((2, 8), ())]
)
def test_mean_over_all_axes_but_the_width(shape, axes):
    block, output = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), torch.randn(shape)
    expected = output.mean(axes) if axes else output
    torch.testing.assert_close(_rows((output, None), block, has_token=False), expected)


def test_the_class_token_after_each_block():
    sizes = dict(patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
    model = VisionTransformer(image_size=8, **sizes).eval()
    images = torch.randn(3, 3, 8, 8)
    with after_blocks(model) as seen:
        embeddings = model(images)
    assert list(seen) == ['block.0', 'block.1'] and seen['block.0'].shape == (3, 8)
    torch.testing.assert_close(model.encoder.ln(seen['block.1']), embeddings)
    model(images + 1)
    assert len(seen) == 2 and not any(m._forward_hooks for m in model.modules())
