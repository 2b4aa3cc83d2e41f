"""Kept features: bounded, the least recently used out first, never stale."""

import copy

import torch
from torch import nn

from mmgslora.families.cache import FeatureCache, content_of, weights_version


def numbers(count):
    return torch.zeros(count), torch.zeros(count)  # 8 bytes each time


def test_least_recently_used_goes_first():
    cache = FeatureCache(max_bytes=80)
    first = cache.keep('a', numbers(5))  # 40 bytes
    cache.keep('b', numbers(5))
    assert cache.find('a') is first and cache.bytes == 80
    cache.keep('c', numbers(5))
    assert cache.find('b') is None and cache.find('a') is first and len(cache) == 2
    cache.keep('a', numbers(2))
    assert cache.bytes == 16 + 40


def test_nothing_is_kept_without_room():
    cache = FeatureCache(0)
    assert cache.keep('a', numbers(1))[0].shape == (1,)
    assert cache.find('a') is None and len(cache) == cache.bytes == 0


def test_dropped_by_key_and_by_kind():
    cache = FeatureCache(1000)
    for kind in 'ab':
        for image in (1, 2):
            cache.keep((kind, image), numbers(5))
    cache.drop(('a', 1))
    cache.drop(('a', 7))
    assert cache.bytes == 120 and cache.find(('a', 1)) is None
    cache.keep_only({'a', 'c'})
    assert cache.bytes == 40 and cache.find(('b', 1)) is None and cache.find(('a', 2))


def test_an_expanded_tensor_takes_what_it_was_expanded_from():
    cache = FeatureCache(10)
    cache.keep('a', (torch.zeros(()).expand(5, 5),))
    assert cache.bytes == 4 and cache.find('a')[0].shape == (5, 5)


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


def test_no_two_modules_that_learn_have_one_version():
    """Not even when the memory of the one before is used again."""
    layer = nn.Linear(2, 2)
    versions = {weights_version(layer, lambda name: False)}
    for _ in range(20):
        versions.add(weights_version(copy.deepcopy(layer), lambda name: False))
    assert len(versions) == 21


def test_a_frozen_copy_has_the_version_of_what_it_is_a_copy_of():
    def version(module):
        return weights_version(module, lambda name: False)

    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    copied = copy.deepcopy(layer)
    assert version(copied) == version(layer)
    assert version(nn.ModuleList(copied)) != version(layer)  # it computes something else
    copied[1].running_mean.add_(1)
    assert version(copied) != version(layer)
    copied[1].running_mean.sub_(1)
    assert version(copied) == version(layer)
    assert version(copied[0].half()) != version(layer[0])
