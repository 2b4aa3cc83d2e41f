"""Kept features: bounded, the least recently used out first, never stale."""

import torch
from torch import nn

from mmgslora.families.cache import FeatureCache, content_of, weights_version


def test_least_recently_used_goes_first():
    cache, computed = FeatureCache(max_bytes=80), []

    def get(key):
        def compute():
            computed.append(key)
            return torch.full((5,), float(key)), torch.zeros(5)  # 40 bytes

        return cache.get(key, compute)[0][0].item()

    assert [get(1), get(2), get(1), get(3)] == [1, 2, 1, 3]  # 2 had to go
    assert computed == [1, 2, 3] and len(cache) == 2 and cache.bytes == 80
    assert get(1) == 1 and get(2) == 2 and computed == [1, 2, 3, 2]


def test_nothing_is_kept_without_room():
    cache = FeatureCache(0)
    assert cache.get('a', lambda: (torch.ones(2),))[0].sum() == 2
    assert len(cache) == cache.bytes == 0


def test_no_gradient_is_kept():
    weight = torch.ones(2, requires_grad=True)
    (found,) = FeatureCache(100).get('a', lambda: (2 * weight,))
    assert not found.requires_grad


def test_one_number_stands_for_an_expanded_tensor_of_zeros():
    """What only has a shape counts as its shape would: the bound is never exceeded."""
    cache = FeatureCache(100)
    cache.get('a', lambda: (torch.zeros(()).expand(5, 5),))
    assert cache.bytes == 100 and len(cache) == 1


def test_content_tells_images_apart():
    image = torch.rand(3, 4, 4)
    assert content_of(image) == content_of(image.clone())
    assert content_of(image) != content_of(image.flip(-1))
    assert content_of(image[:, ::2]) == content_of(image[:, ::2].contiguous())
    assert content_of(image.bfloat16()) != content_of(image)


def test_version_follows_every_write_but_those_of_a_tuner():
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    layer.register_parameter('lora_A', nn.Parameter(torch.zeros(2)))
    seen = [weights_version(layer, lambda name: name == 'lora_A')]

    def changed():
        seen.append(weights_version(layer, lambda name: name == 'lora_A'))
        return seen[-1] != seen[-2]

    with torch.no_grad():
        layer.lora_A.add_(1)
        assert not changed()
        layer[0].weight.copy_(torch.zeros(2, 2))
        assert changed()
    layer.load_state_dict(layer.state_dict())
    assert changed()
    layer(torch.randn(4, 2))  # running statistics
    assert changed()
    layer.eval()(torch.randn(4, 2))
    assert not changed()
