"""Untrained is the architecture of the config, with nothing in it that was ever trained."""

import copy

import pytest
import torch
import torchvision
from mmengine.registry import MODELS
from torch import nn
from torchvision.models import WeightsEnum

from mmgslora.families.untrained import untrained, without_checkpoints
from mmgslora.models import vision_transformer

SIZES = dict(patch_size=32, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24)
VIT = dict(type='VisionTransformer', image_size=32, **SIZES)
HEAD = dict(type='LinearHead', embed_dims=16, num_classes=2)
NAMES = [f'n{row:03}' for row in range(1000)]
FOLDERS = dict(folder_names=['n002', 'n001'], all_folder_names=NAMES)


@pytest.fixture
def published(monkeypatch):
    """Threes as if torchvision had published them, for a tiny vit_b_16 and images of 384."""
    models = dict(
        ViT_B_16_Weights=torchvision.models.VisionTransformer(image_size=384, **SIZES),
        ShuffleNet_V2_X0_5_Weights=torchvision.models.shufflenet_v2_x0_5(),
    )

    def state(entry, **_):
        return {k: v.fill_(3) for k, v in models[type(entry).__name__].state_dict().items()}

    monkeypatch.setitem(vision_transformer._ARCHS, 'vit_b_16', SIZES)
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', state)


class Net(nn.Module):
    """Tokens of its own, a norm with statistics, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, 2)


def trained_net(pretrained: bool = True) -> Net:
    """As functions of other libraries do it, here with threes."""
    net = Net()
    for value in net.state_dict().values():
        value.fill_(3)
    return net


PUBLISHED = dict(weights='IMAGENET1K_SWAG_E2E_V1')
TRAINED = dict(
    backbone=dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch='vit_b_16', **PUBLISHED),
        head=HEAD,
    ),
    head=dict(type='ImageClassifier', backbone=VIT, head=dict(type='ImageNetHead', **FOLDERS)),
    torchvision=dict(
        type='TorchvisionClassifier', name='shufflenet_v2_x0_5', weights='IMAGENET1K_V1'
    ),
    function=dict(type='LibraryClassifier', net=dict(type=trained_net, pretrained=True)),
    network=dict(type='LibraryClassifier', net=trained_net()),
)


@pytest.mark.parametrize('name', TRAINED)
def test_the_same_architecture_with_nothing_of_its_weights(published, name):
    config = TRAINED[name]
    built = MODELS.build(copy.deepcopy(config)).state_dict()
    first, again, other = (untrained(config, seed).state_dict() for seed in (0, 0, 1))
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in built.items()}
    assert any((value == 3).any() for value in built.values())
    assert not any((value == 3).any() for value in first.values())
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_how_everything_is_drawn_anew():
    state = untrained(TRAINED['network'], seed=0).state_dict()
    assert state['norm.weight'].tolist() == state['norm.running_var'].tolist() == [1] * 4
    assert not state['norm.running_mean'].any() and state['norm.num_batches_tracked'] == 0
    assert 0 < state['token'].abs().max() < 0.1 and state['fc.weight'].abs().max() <= 0.5
    assert all((value == 3).all() for value in TRAINED['network']['net'].state_dict().values())


def test_what_holds_no_weights_is_as_it_was_built():
    """Its own way to begin is kept: zeros for the class token, Xavier for the head."""
    config = dict(type='ImageClassifier', backbone=VIT, head=HEAD)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        built = MODELS.build(copy.deepcopy(config)).state_dict()
    found = untrained(config, seed=5).state_dict()
    assert all(torch.equal(value, built[key]) for key, value in found.items())


@pytest.mark.parametrize('kind', [dict, list])
def test_no_checkpoint_is_left_in_a_config(kind):
    pretrained, xavier = dict(type='Pretrained', checkpoint='x'), dict(type='Xavier')
    part = dict(pretrained='torchvision://resnet50', depth=3)
    config = dict(
        type='X',
        parts=dict(a=part) if kind is dict else [part],
        backbone=dict(init_cfg=pretrained),
        neck=dict(init_cfg=xavier),
        head=dict(init_cfg=[xavier, pretrained]),
    )
    before = copy.deepcopy(config)
    found = without_checkpoints(config)
    assert (found['parts']['a'] if kind is dict else found['parts'][0]) == dict(depth=3)
    assert found['backbone'] == dict(init_cfg=None) and found['neck'] == config['neck']
    assert found['head'] == dict(init_cfg=[xavier]) and config == before
