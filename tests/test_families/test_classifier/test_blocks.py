"""What is read off after each transformer block."""

import pytest
import torch
from torch import nn

from mmgslora.families.classifier.blocks import _rows, after_blocks
from mmgslora.models import ImageClassifier


@pytest.mark.parametrize(
    'shape, axes', [((2, 5, 8), 1), ((2, 3, 4, 8), (1, 2)), ((2, 8, 3, 4), (2, 3)), ((2, 8), ())]
)
def test_mean_over_all_axes_but_the_width(shape, axes):
    block, output = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), torch.randn(shape)
    expected = output.mean(axes) if axes else output
    torch.testing.assert_close(_rows((output, None), block), expected)


def test_the_class_token_after_each_block():
    sizes = dict(patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
    backbone = dict(type='VisionTransformer', image_size=8, **sizes)
    head = dict(type='LinearHead', embed_dims=8, num_classes=2)
    model = ImageClassifier(backbone, head).eval()
    images = torch.randn(3, 3, 8, 8)
    with after_blocks(model, images) as seen:
        _, embeddings = model(images)
    assert list(seen) == ['block.0', 'block.1'] and seen['block.0'].shape == (3, 8)
    torch.testing.assert_close(model.backbone.encoder.ln(seen['block.1']), embeddings)
    model(images + 1)
    assert len(seen) == 2 and not any(m._forward_hooks for m in model.modules())


class Tokens(nn.Module):
    """Four patches and a class token, which comes before the block ``since``."""

    def __init__(self, since, read):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        layer = dict(nhead=2, dim_feedforward=12, batch_first=True)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, **layer) for _ in range(3))
        self.norm, self.since, self.read = nn.LayerNorm(8), since, read

    def forward(self, images):
        x, self.after = images.reshape(-1, 4, 8), []
        for number, layer in enumerate(self.layers):
            if number == self.since:
                x = torch.cat([self.cls_token.expand(len(x), 1, 8), x], 1)
            x = layer(x)
            self.after.append(x)
        embeddings = self.norm(self.read(x))
        return embeddings, embeddings


def test_the_patches_of_a_network_that_reads_their_mean():
    """A BEiT has a class token, and does not read it."""
    model, images = Tokens(0, lambda x: x[:, 1:].mean(1)).eval(), torch.randn(3, 4, 8)
    with torch.no_grad(), after_blocks(model, images) as seen:
        model(images)
    for row, x in zip(seen.values(), model.after):
        torch.testing.assert_close(row, (x[:, 1] + x[:, 2] + x[:, 3] + x[:, 4]) / 4)


@pytest.mark.parametrize('read', [lambda x: x[:, 0], lambda x: x[:, 0] + x.mean(1)])
def test_before_the_class_token_is_there_the_mean_counts(read):
    """A CaiT or a PVT gives blocks the patches alone at first, of which the first is a corner."""
    model, images = Tokens(2, read).eval(), torch.randn(3, 4, 8)
    with torch.no_grad(), after_blocks(model, images) as seen:
        model(images)
    first, second, last = seen.values()
    for row, x in ((first, model.after[0]), (second, model.after[1])):
        torch.testing.assert_close(row, (x[:, 0] + x[:, 1] + x[:, 2] + x[:, 3]) / 4)
    torch.testing.assert_close(last, model.after[2][:, 0])
