"""A version of weights: another after every write, the same for the same frozen content."""

import copy

import torch
from torch import nn

from mmgslora.families.weights import weights_version


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
