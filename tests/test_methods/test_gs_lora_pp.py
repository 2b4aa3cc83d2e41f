"""Prototype terms of GS-LoRA++ against values worked out by hand."""

import math

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.methods import GSLoRAPlusPlus
from mmgslora.methods.base import of_task
from mmgslora.methods.prototypes import Prototypes
from mmgslora.methods.sparsity import Sparsity

from .views import context, sides
from .views import view as made_view

LOG3 = math.log(3)
# KL((1/4, 3/4) || (1/2, 1/2)) and the other way round
FAR = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)


def view(side, of, embeddings):
    embeddings = torch.as_tensor(embeddings)
    rows = range(len(embeddings))
    flat = torch.zeros(len(embeddings), 3)
    return made_view(side, 1.0, flat, embeddings=embeddings, of=of, matched=rows)


def method(**settings):
    made = GSLoRAPlusPlus(sparsity=dict(mode='none'), **settings)
    made._prototypes.values = torch.tensor([[0.0, 0.0], [0.0, LOG3], [math.nan, math.nan]])
    return made


def losses_of(pp, forget, retain):
    return pp.losses(sides(view('forget', *forget), view('retain', *retain)), context())


def test_by_hand():
    pp = method(prototype_weight=0.1, feature_pull_weight=0.5, prototype_bound=2.0)
    forget = [1, 1], [[0.0, LOG3], [0.0, 0.0]]  # at the prototype, and FAR from it
    retain = [0, 1], [[0.0, 0.0], [0.0, 0.0]]
    losses = losses_of(pp, forget, retain)
    assert losses['forget_loss_prototype'].item() == pytest.approx(0.1 * (2 - FAR / 2))
    assert losses['retain_loss_prototype'].item() == pytest.approx(0.5 * FAR / 2, rel=1e-5)
    assert losses['retain_loss_cls'].item() == 1  # the rest is GS-LoRA's


def test_classes_without_prototype_are_left_out():
    pp = method(prototype_weight=0.0, feature_pull_weight=1.0)
    losses = losses_of(pp, ([1], [[0.0, 0.0]]), ([2, 1], [[9.0, 0.0], [0.0, 0.0]]))
    assert losses['retain_loss_prototype'].item() == pytest.approx(FAR, rel=1e-5)
    nothing = losses_of(pp, ([1], [[0.0, 0.0]]), ([2], [[9.0, 0.0]]))
    assert nothing['retain_loss_prototype'].item() == 0
    assert 'forget_loss_prototype' not in losses


def test_pushing_stops_at_the_bound():
    pp = method(prototype_weight=1.0, prototype_bound=FAR / 2)
    embeddings = torch.tensor([[0.0, 0.0]], requires_grad=True)
    losses = losses_of(pp, ([1], embeddings), ([0], [[0.0, 0.0]]))
    loss = losses['forget_loss_prototype']
    loss.backward()
    assert loss.item() == 0 and not embeddings.grad.any()


def test_gradient_goes_the_right_way():
    """A step down the forget term leaves the prototype, down the retain term nears it."""
    for settings, sign in (
        (dict(prototype_weight=1.0, feature_pull_weight=0.0), 1),
        (dict(prototype_weight=0.0, feature_pull_weight=1.0), -1),
    ):
        embeddings = torch.tensor([[0.0, 0.4]], requires_grad=True)
        pp = method(prototype_bound=9.0, **settings)
        losses = losses_of(pp, ([1], embeddings), ([1], embeddings))
        sum(v for k, v in losses.items() if 'prototype' in k).backward()
        moved = (embeddings - 0.1 * embeddings.grad).detach()
        before, after = (x[0, 1] - x[0, 0] for x in (embeddings.detach(), moved))
        assert sign * (abs(after - LOG3) - abs(before - LOG3)) > 0


def test_defaults_are_those_of_the_detection_script():
    pp = GSLoRAPlusPlus()
    assert (pp.prototype_bound, pp.prototype_weight, pp.feature_pull_weight) == (18, 0.005, 0)
    assert pp.prototypes == 'head' and pp.bound == 15 and not pp.teachers


def test_weights_of_each_task():
    few = GSLoRAPlusPlus(beta=[0.3, 0.4], prototype_weight=[0.015, 0.06])
    tasks = [context(number=number).task for number in (1, 2, 3)]
    found = [(of_task(few.prototype_weight, task), of_task(few.beta, task)) for task in tasks]
    assert found == [(0.015, 0.3), (0.06, 0.4), (0.06, 0.4)]


def test_the_losses_take_the_weight_of_their_task():
    """FAR from the prototype of class 1 and bounded at 2, with the third of two weights."""
    pp = method(prototype_weight=[0.1, 0.3], prototype_bound=2.0)
    views = sides(view('forget', [1], [[0.0, 0.0]]), view('retain', [0], [[0.0, 0.0]]))
    found = pp.losses(views, context(number=3))['forget_loss_prototype']
    assert found.item() == pytest.approx(0.3 * (2 - FAR), rel=1e-5)


def test_sparsity_and_prototypes_are_both_its_parts_with_their_settings():
    pp = GSLoRAPlusPlus(prototypes='embeddings', prototype_file='a.safetensors', prototype_passes=7)
    assert [type(part) for part in pp.parts] == [Sparsity, Prototypes]
    made = pp.parts[1]
    assert (made.source, made.file, made.passes) == ('embeddings', 'a.safetensors', 7)
    assert pp.files(1) == ['a.safetensors'] and GSLoRAPlusPlus().files(1) == []
    assert GSLoRAPlusPlus().parts[1].passes == 4


def test_bad_arguments():
    with pytest.raises(ForgettingError, match="'head_rows'.*embeddings or head"):
        GSLoRAPlusPlus(prototypes='head_rows')
    with pytest.raises(ForgettingError, match='prototype_bound is -1;'):
        GSLoRAPlusPlus(prototype_bound=-1)
