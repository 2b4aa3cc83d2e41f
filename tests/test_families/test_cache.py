"""Kept features: bounded, the least recently used out first, never stale."""

import torch

from mmgslora.families.cache import FeatureCache


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


def test_what_is_spare_goes_before_all_else():
    cache = FeatureCache(max_bytes=80)
    cache.keep('old', numbers(5))
    cache.keep('spare', numbers(5), spare=True)
    cache.keep('new', numbers(5))
    assert cache.find('spare') is None and cache.find('old') and cache.find('new')
    cache.drop('new')
    cache.keep('spare', numbers(5), spare=True)
    cache.find('spare')  # now it was asked for
    cache.keep('new', numbers(5))
    assert cache.find('old') is None and cache.find('spare')


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
