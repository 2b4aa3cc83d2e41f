"""Which stages are fixed is read off again whenever anything that it depends on has changed."""

import copy
import gc

import pytest
import torch
from torch import nn

from mmgslora.families.detector.stages import detector_stages
from mmgslora.families.stages import Stages
from mmgslora.lora import inject_lora, lora_layers
from mmgslora.tuning import build_tuner


class Detector(nn.Module):
    """The names of a DETR-like detector, an FFN in its second decoder layer."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        self.encoder = nn.Linear(2, 2)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.level_embed = nn.Parameter(torch.zeros(2))
        self.bbox_head = nn.Linear(2, 2)


@pytest.fixture
def detector():
    model = Detector().requires_grad_(False).eval()
    inject_lora(model, rank=1, target=r'decoder\.layers\.1', exclude=[])
    return model


def names(found):
    return list(found)


UP_TO_THE_LAST = ['trunk', 'encoder', 'decoder.0']


def test_everything_up_to_the_first_that_learns(detector):
    stages = Stages(build_tuner(dict(type='LoRA')), detector_stages, lambda keys: None)
    assert names(stages.fixed(detector)) == UP_TO_THE_LAST
    (layer,) = lora_layers(detector).values()
    layer.held = True
    assert names(stages.fixed(detector)) == [*UP_TO_THE_LAST, 'decoder.1', 'head']
    layer.held = False
    detector.decoder.layers[0].train()
    assert names(stages.fixed(detector)) == ['trunk', 'encoder']
    detector.decoder.layers[0].eval()
    detector.bbox_head.train()  # which each decoder layer's boxes go through
    assert names(stages.fixed(detector)) == ['trunk', 'encoder']
    detector.as_two_stage = True
    assert names(Stages(stages.tune, detector_stages, lambda keys: None).fixed(detector)) == [
        'trunk'
    ]


@torch.no_grad()
def test_another_version_after_every_write(detector):
    stages = Stages(build_tuner(dict(type='LoRA')), detector_stages, lambda keys: None)
    first = stages.fixed(detector)
    assert stages.fixed(detector) == first
    lora_layers(detector)['decoder.layers.1'].lora_B.fill_(1)  # learns, and is in no version
    assert stages.fixed(detector) == first
    detector.decoder.layers[0].weight.add_(1)
    second = stages.fixed(detector)
    assert second['encoder'] == first['encoder'] and second['decoder.0'] != first['decoder.0']
    detector.level_embed.add_(1)
    third = stages.fixed(detector)
    assert third['trunk'] == first['trunk'] and third['encoder'] != first['encoder']
    detector.backbone[1].running_mean.add_(1)
    assert stages.fixed(detector)['trunk'] != first['trunk']


@torch.no_grad()
def test_says_what_can_still_be_asked_for(detector):
    said = []
    stages = Stages(build_tuner(dict(type='LoRA')), detector_stages, said.append)
    first = set(stages.fixed(detector).values())
    (layer,) = lora_layers(detector).values()
    layer.held = True
    own = set(stages.fixed(detector).values())
    assert said == [first, own] and len(own) == 5 and own > first
    layer.held = False
    stages.fixed(detector)
    assert len(said) == 2  # both were known
    teacher = copy.deepcopy(detector)
    layer.held = True
    assert stages.fixed(teacher) == {k: v for k, v in stages.fixed(detector).items() if v in first}
    teacher.decoder.layers[0].weight.add_(1)
    both = own | set(stages.fixed(teacher).values())
    assert said[-1] == both and len(both) == 5 + 1
    del teacher
    gc.collect()
    detector.encoder.weight.add_(1)
    stages.fixed(detector)  # what it was before, held or not, it cannot be again
    assert len(said[-1]) == 5 and len(said[-1] & own) == 1


@torch.no_grad()
def test_what_learns_may_be_written_to(detector):
    said = []
    tune = build_tuner(dict(type='Full', target=r'decoder\..*'))
    tune.attach(detector.requires_grad_(True), ())
    stages = Stages(tune, detector_stages, said.append)
    first = stages.fixed(detector)
    for _ in range(3):
        detector.decoder.layers[0].weight.add_(1)
        assert stages.fixed(detector) is first  # nothing was read or dropped
    assert len(said) == 1 and names(first) == ['trunk', 'encoder']
