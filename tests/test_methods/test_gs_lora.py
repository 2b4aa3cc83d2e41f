"""Losses of GS-LoRA against values worked out by hand."""

import math

import pytest

from mmgslora.errors import ForgettingError
from mmgslora.methods import GSLoRA

from .views import context, sides, view

FLAT = [[-1.0, -1.0, -1.0]]


def test_by_hand(model, groups):
    method = GSLoRA()
    views = sides(view('forget', 1.2, FLAT), view('retain', 0.9, FLAT))
    losses = method.losses(views, context(groups))
    assert losses['retain_loss_cls'].item() == pytest.approx(0.9)
    assert losses['forget_loss_cls'].item() == pytest.approx(0.015 * (15 - 1.2))
    assert losses['forget_loss_bbox'].item() == pytest.approx(0.015 * 0.5)
    assert losses['forget_loss_iou'].item() == pytest.approx(0.015 * 0.25)
    # B is zero at the start, so the penalty sees A alone: 2 groups of A (2, 4) and A (2, 8).
    squares = [
        sum(layer.lora_A.double().square().sum() for layer in (block.up, block.down))
        for block in model
    ]
    expected = 3e-4 * sum(math.sqrt(s) for s in squares)
    assert losses['loss_sparsity'].item() == pytest.approx(expected, rel=1e-5)
    assert not method.teachers and method.dropout
    assert 'retain_loss_drift' not in losses and len(method.parts) == 1


def test_beta_of_each_task(groups):
    method = GSLoRA()
    expected = [0.015, 0.03, 0.14, 0.13, 0.13, 0.15, 0.15, 0.15, 0.15]
    for task, beta in enumerate(expected, 1):
        views = sides(view('forget', 0.0, FLAT), view('retain', 0.0, FLAT))
        loss = method.losses(views, context(groups, number=task))['forget_loss_cls']
        assert loss.item() == pytest.approx(15 * beta)


def test_ascent_stops_at_the_bound(groups):
    views = sides(view('forget', 15.5, FLAT), view('retain', 0.0, FLAT))
    assert GSLoRA().losses(views, context(groups))['forget_loss_cls'].item() == 0


def test_neither_teacher_nor_proximal_unless_asked(groups):
    """An ablation may ask for the proximal step; the rest of the method stays as it is."""
    method = GSLoRA(sparsity=dict(mode='proximal'))
    assert method.sparsity.mode == 'proximal' and method.sparsity.alpha == 3e-4
    views = sides(view('forget', 1.2, FLAT), view('retain', 0.9, FLAT))
    assert set(method.losses(views, context(groups))) == {
        f'{side}_loss_{term}' for side in ('forget', 'retain') for term in ('cls', 'bbox', 'iou')
    }


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(beta=-0.1), 'beta is -0.1; it can be a number from 0 up, or a list'),
        (dict(beta=[0.1, 'x']), r"beta is \[0.1, 'x'\]"),
        (dict(beta=[]), r'beta is \[\]'),
        (dict(bound=float('nan')), 'bound is nan; it can be a number from 0 up'),
        (dict(bound=True), 'bound is True'),
        (dict(sparsity=dict(mode='l1')), "'l1'.*proximal, penalty or none"),
        (dict(sparsity=dict(alfa=0.3)), "no setting 'alfa' .did you mean 'alpha'"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ForgettingError, match=words):
        GSLoRA(**arguments)
