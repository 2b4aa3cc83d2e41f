"""Against torchvision's own models; nothing is downloaded."""

import pytest
import torch
import torchvision
from torchvision.models import WeightsEnum

from mmgslora.errors import ForgettingError
from mmgslora.lora import check_live_adapters, discover_groups, inject_lora, trainable_share
from mmgslora.models import ImageClassifier, VisionTransformer, vision_transformer

SIZES = dict(patch_size=32, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24)


@pytest.fixture
def published(monkeypatch):
    """A tiny model of torchvision as if it were the published vit_b_16."""
    theirs = torchvision.models.VisionTransformer(image_size=224, num_classes=1000, **SIZES)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = theirs.state_dict()
    monkeypatch.setitem(vision_transformer._ARCHS, 'vit_b_16', SIZES)
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda entry, **_: dict(state))
    return theirs.eval(), state


def test_embeds_what_the_published_head_reads(published):
    theirs, _ = published
    ours = VisionTransformer(arch='vit_b_16', weights='IMAGENET1K_V1').eval()
    images = torch.randn(2, 3, 224, 224)
    assert ours(images).shape == (2, 16)
    torch.testing.assert_close(theirs.heads(ours(images)), theirs(images))
    assert not [name for name in ours.state_dict() if name.startswith('heads')]
    assert ours.weights == 'IMAGENET1K_V1' and ours.image_size == 224


def test_published_files_still_have_the_old_names(published):
    """vit_b_16-c867db91.pth was saved before torchvision renamed the Linears of its MLP."""
    theirs, state = published
    for name in list(state):
        old = name.replace('.mlp.0.', '.mlp.linear_1.').replace('.mlp.3.', '.mlp.linear_2.')
        state[old] = state.pop(name)
    assert 'encoder.layers.encoder_layer_1.mlp.linear_2.bias' in state
    ours = VisionTransformer(arch='vit_b_16', weights='DEFAULT').eval()
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(theirs.heads(ours(images)), theirs(images))


@pytest.mark.parametrize('arch', ['vit_b_16', 'vit_b_32', 'vit_l_16', 'vit_l_32', 'vit_h_14'])
def test_sizes_of_the_published_models(arch):
    with torch.device('meta'):
        theirs = torchvision.models.get_model(arch).state_dict()
        ours = VisionTransformer(arch=arch)
    shapes = {k: v.shape for k, v in theirs.items() if not k.startswith('heads')}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
    heads = [m for m in ours.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    with torch.device('meta'):
        wanted = torchvision.models.get_model(arch).encoder.layers[0].num_heads
    assert {m.num_heads for m in heads} == {wanted}


def test_share_and_groups_of_the_papers_model():
    with torch.device('meta'):
        model = ImageClassifier(
            dict(type='VisionTransformer', arch='vit_b_16'),
            dict(type='LinearHead', embed_dims=768, num_classes=100),
        )
        inject_lora(model, rank=8)
    # 12 blocks * 2 Linears * 8 * (768 + 3072); the total was measured on the authors' model.
    trainable, total = trainable_share(model)
    assert (trainable, total) == (737_280, 85_875_556)
    assert round(100 * trainable / total, 2) == 0.86
    names = [group.name for group in discover_groups(model)]
    assert names == [f'backbone.encoder.layers.encoder_layer_{i}.mlp' for i in range(12)]


def test_any_size():
    model = VisionTransformer(image_size=64, dropout=0.25, **SIZES)
    inject_lora(model, rank=2)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    check_live_adapters(model)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(), 'needs an arch .*; it got no size'),
        (dict(patch_size=16), 'all of patch_size, .*; it got patch_size'),
        (dict(weights='IMAGENET1K_V1', **SIZES), 'and weights IMAGENET1K_V1'),
        (dict(arch='vit_b_16', hidden_dim=64), "hidden_dim is given beside arch 'vit_b_16'"),
        (dict(arch='vit_s_16'), "arch is 'vit_s_16'; allowed are vit_b_16"),
        (dict(arch='vit_b_16', weights='IMAGENET22K'), "no weights 'IMAGENET22K' of vit_b_16"),
        (dict(image_size=100, **SIZES), 'image_size 100 .* multiple of patch_size'),
        (dict(image_size=64, **{**SIZES, 'num_heads': 3}), 'hidden_dim one of num_heads'),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ForgettingError, match=message):
        VisionTransformer(**arguments)


def test_refused_size_of_the_weights(published):
    with pytest.raises(ForgettingError, match='image_size is 128 and the weights .* for 224'):
        VisionTransformer(arch='vit_b_16', weights='IMAGENET1K_V1', image_size=128)


def test_without_a_network(monkeypatch):
    def unreachable(entry, **_):
        raise OSError('Name or service not known')

    monkeypatch.setattr(WeightsEnum, 'get_state_dict', unreachable)
    with pytest.raises(ForgettingError, match='cannot be downloaded .*c867db91.pth .*not known'):
        VisionTransformer(arch='vit_b_16', weights='IMAGENET1K_V1')
