"""Losses of GS-LoRA against values worked out by hand."""

import math

import pytest
import torch

from mmgslora.datasets import Protocol
from mmgslora.errors import ForgettingError
from mmgslora.families import View
from mmgslora.lora import inject_lora
from mmgslora.methods import GSLoRA


def view(loss_cls, log_probs, teacher=None, drift=None, classes=(1,), old=()):
    terms = dict(
        loss_cls=torch.tensor(loss_cls), loss_bbox=torch.tensor(0.5), loss_iou=torch.tensor(0.25)
    )
    return View(
        loss=sum(terms.values()),
        terms=terms,
        labels=torch.tensor([1]),
        logits=torch.zeros(1, 3),
        embeddings=torch.zeros(1, 4),
        log_probs=torch.tensor(log_probs),
        states=torch.zeros(len(log_probs), 4),
        classes=torch.tensor(classes),
        gone=torch.tensor([*classes, *old]),
        teacher_log_probs=None if teacher is None else torch.tensor(teacher),
        drift=None if drift is None else torch.tensor(drift),
    )


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(4, 2)
        self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)


@pytest.fixture
def model():
    model = torch.nn.Sequential(Block(), Block())
    inject_lora(model, rank=2)
    return model


def test_paper_recipe_by_hand(model):
    method = GSLoRA(recipe='paper')
    method.bind(model)
    Protocol(('a', 'b', 'c'), [['b']]).partition(1).publish()
    losses = method.losses(view(1.2, [[-1.0, -1, -1]]), view(0.9, [[-1.0, -1, -1]]))
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
    assert not method.needs_teacher and method.dropout
    assert 'retain_loss_drift' not in losses


def test_paper_beta_of_each_task(model):
    method = GSLoRA(recipe='paper')
    method.bind(model)
    protocol = Protocol(tuple('abcdefghij'), [[c] for c in 'abcdefghi'])
    expected = [0.015, 0.03, 0.14, 0.13, 0.13, 0.15, 0.15, 0.15, 0.15]
    for task, beta in enumerate(expected, 1):
        protocol.partition(task).publish()
        loss = method.losses(view(0.0, [[0.0]]), view(0.0, [[0.0]]))['forget_loss_cls']
        assert loss.item() == pytest.approx(15 * beta)


def test_ascent_stops_at_the_bound(model):
    method = GSLoRA(recipe='paper')
    method.bind(model)
    assert method.losses(view(15.5, [[0.0]]), view(0.0, [[0.0]]))['forget_loss_cls'].item() == 0


def test_prediction_ascent_by_hand(model):
    """Two predictions, classes to forget 1 and 2; the teacher's belief weighs the hinge."""
    method = GSLoRA(ascend='predictions', bound=4.0, beta=0.5, drift=2.0, sparsity=dict(alpha=0.0))
    method.bind(model)
    log_probs = [[-9.0, -1.0, -5.0], [-9.0, -3.0, -0.5]]
    teacher = [[0.0, math.log(0.9), math.log(0.1)], [0.0, math.log(0.2), math.log(0.8)]]
    forget = view(1.0, log_probs, teacher, drift=0.3, classes=(1, 2))
    losses = method.losses(forget, view(0.9, log_probs, teacher, drift=0.1))
    # hinges: 3, 0 (beyond the bound), 1, 3.5; beliefs .9, .1, .2, .8 sum to 2
    expected = 0.5 * (0.9 * 3 + 0.2 * 1 + 0.8 * 3.5) / 2
    assert losses['forget_loss_cls'].item() == pytest.approx(expected)
    assert losses['forget_loss_drift'].item() == pytest.approx(0.6)
    assert losses['retain_loss_drift'].item() == pytest.approx(0.2)
    assert 'forget_loss_bbox' not in losses and method.needs_teacher


def test_odds_by_hand(model):
    """p = (1/4, 3/4, 0+): the odds of class 1 are 3; where p is 1 the slope is still 1."""
    method = GSLoRA(ascend='odds', bound=4.0, beta=1.0, drift=0.0, sparsity=dict(mode='none'))
    method.bind(model)
    log_probs = [[math.log(0.25), math.log(0.75), -1e4]]
    teacher = [[math.log(0.2), math.log(0.8), -1e4]]
    losses = method.losses(view(1.0, log_probs, teacher), view(1.0, log_probs, teacher))
    assert losses['forget_loss_cls'].item() == pytest.approx(0.8 * (4 + math.log(3)), rel=1e-5)
    logits = torch.tensor([[0.0, 60.0, 0.0]], requires_grad=True)  # p is 1 in float32
    sure = view(1.0, log_probs, teacher)
    sure.log_probs = logits.log_softmax(-1)
    method.losses(sure, sure)['forget_loss_cls'].backward()
    assert logits.grad[0, 1].item() == pytest.approx(0.8, rel=1e-4)  # the belief


def test_odds_are_those_of_all_that_must_be_gone(model):
    """A picture of class 1 must not be called 2, which was forgotten earlier, nor 0."""
    method = GSLoRA(ascend='odds', bound=4.0, beta=1.0, drift=0.0, sparsity=dict(mode='none'))
    method.bind(model)
    log_probs = [[math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]]
    teacher = [[math.log(p) for p in (0.3, 0.5, 0.1, 0.1)]]
    both = view(1.0, log_probs, teacher, classes=(0, 1), old=(2,))
    found = method.losses(both, both)['forget_loss_cls'].item()
    assert found == pytest.approx(0.8 * (4 + math.log(0.6 / 0.4)), rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(recipe='papr'), "'papr'.*default"),
        (dict(ascend='boxes'), "'boxes'.*loss, predictions or odds"),
        (dict(sparsity=dict(mode='l1')), "'l1'.*proximal, penalty or none"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ForgettingError, match=words):
        GSLoRA(**arguments)
