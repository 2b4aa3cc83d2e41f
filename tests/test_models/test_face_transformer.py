"""What the model is; that it computes what the authors' does is tests/test_tools's to say."""

import pytest
import torch
import torch.nn.functional as F

from mmgslora.errors import ForgettingError
from mmgslora.lora import check_live_adapters, discover_groups, inject_lora, trainable_share
from mmgslora.models import FaceTransformer, ImageClassifier

TINY = dict(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=32)


@pytest.mark.parametrize('depth', [6, 12, 18])
def test_share_and_groups_of_the_papers_model(depth):
    with torch.device('meta'):
        model = ImageClassifier(
            dict(type='FaceTransformer', num_layers=depth),
            dict(type='CosineMarginHead', embed_dims=512, num_classes=100),
        )
        assert len(inject_lora(model, rank=8)) == 2 * depth
    # Per block: 8 * (512 + 2048) for each of two Linears. README of GS-LoRA for depth 6: 1.28 %.
    trainable, total = trainable_share(model)
    assert trainable == depth * 2 * 8 * (512 + 2048)
    groups = [f'backbone.blocks.{i}.mlp' for i in range(depth)]
    assert [group.name for group in discover_groups(model)] == groups
    if depth == 6:
        assert (trainable, total) == (245_760, 19_157_504)
        assert round(100 * trainable / total, 2) == 1.28


def test_adapters_get_gradients():
    model = FaceTransformer(**TINY)
    inject_lora(model, rank=2)
    model(torch.randn(3, 3, 16, 16)).square().sum().backward()
    check_live_adapters(model)


def test_dropout_only_while_training():
    model = FaceTransformer(**TINY)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    still = FaceTransformer(**TINY, dropout=0.0)
    still.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), still.train()(images))
    rates = {m.p for m in FaceTransformer(**TINY).modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.1}


def test_images_do_not_mix():
    model = FaceTransformer(**TINY).eval()
    images = torch.randn(3, 3, 16, 16)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-5)
    assert alone.shape == (3, 24) and alone.std(0).min() > 0


def test_learns():
    """Where a bright patch is, which neither order-blind nor patch-blind models could tell."""
    model = FaceTransformer(**TINY, dropout=0.0)
    head = torch.nn.Linear(24, 4)
    images, labels = torch.randn(32, 3, 16, 16) * 0.1, torch.arange(32) % 4
    for image, label in zip(images, labels.tolist()):
        image[:, 4 * label : 4 * label + 4, 8:12] += 1
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(head(model(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(model(images)).argmax(-1) == labels).float().mean() > 0.95


def test_patches_must_fit():
    with pytest.raises(ForgettingError, match='image_size 110 is not a multiple of patch_size 8'):
        FaceTransformer(image_size=110)
