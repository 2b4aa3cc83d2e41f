"""Prototype terms of GS-LoRA++ against values worked out by hand."""

import math

import pytest
import torch

from mmgslora.datasets import Protocol
from mmgslora.errors import ForgettingError
from mmgslora.families import View
from mmgslora.methods import GSLoRAPlusPlus

LOG3 = math.log(3)
# KL((1/4, 3/4) || (1/2, 1/2)) and the other way round
FAR = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)


def view(labels, embeddings):
    return View(
        states=torch.tensor(embeddings),
        loss=torch.tensor(1.0),
        terms=dict(loss_cls=torch.tensor(1.0)),
        labels=torch.tensor(labels),
        logits=torch.zeros(len(labels), 3),
        embeddings=torch.tensor(embeddings),
        log_probs=torch.zeros(1, 3),
        classes=torch.tensor([1]),
        gone=torch.tensor([1]),
    )


def method(**settings):
    made = GSLoRAPlusPlus(recipe='paper', sparsity=dict(mode='none'), **settings)
    made.prototypes = torch.tensor([[0.0, 0.0], [0.0, LOG3], [math.nan, math.nan]])
    return made


def test_push_and_pull_by_hand():
    pp = method(push=0.1, pull=0.5, prototype_bound=2.0)
    forget = view([1, 1], [[0.0, LOG3], [0.0, 0.0]])  # at the prototype, and FAR from it
    retain = view([0, 1], [[0.0, 0.0], [0.0, 0.0]])
    losses = pp.losses(forget, retain)
    assert losses['forget_loss_prototype'].item() == pytest.approx(0.1 * (2 - FAR / 2))
    assert losses['retain_loss_prototype'].item() == pytest.approx(0.5 * FAR / 2, rel=1e-5)
    assert losses['retain_loss_cls'].item() == 1  # the rest is GS-LoRA's


def test_classes_without_prototype_are_left_out():
    pp = method(push=0.0, pull=1.0)
    losses = pp.losses(view([1], [[0.0, 0.0]]), view([2, 1], [[9.0, 0.0], [0.0, 0.0]]))
    assert losses['retain_loss_prototype'].item() == pytest.approx(FAR, rel=1e-5)
    nothing = pp.losses(view([1], [[0.0, 0.0]]), view([2], [[9.0, 0.0]]))
    assert nothing['retain_loss_prototype'].item() == 0
    assert 'forget_loss_prototype' not in losses


def test_pushing_stops_at_the_bound():
    pp = method(push=1.0, prototype_bound=FAR / 2)
    embeddings = torch.tensor([[0.0, 0.0]], requires_grad=True)
    forget = view([1], [[0.0, 0.0]])
    forget.embeddings = embeddings
    loss = pp.losses(forget, view([0], [[0.0, 0.0]]))['forget_loss_prototype']
    loss.backward()
    assert loss.item() == 0 and not embeddings.grad.any()


def test_gradient_goes_the_right_way():
    """A step down the push term leaves the prototype, down the pull term nears it."""
    for settings, sign in ((dict(push=1.0, pull=0.0), 1), (dict(push=0.0, pull=1.0), -1)):
        embeddings = torch.tensor([[0.0, 0.4]], requires_grad=True)
        both = view([1], [[0.0, 0.4]])
        both.embeddings = embeddings
        losses = method(prototype_bound=9.0, **settings).losses(both, both)
        sum(v for k, v in losses.items() if 'prototype' in k).backward()
        moved = (embeddings - 0.1 * embeddings.grad).detach()
        before, after = (x[0, 1] - x[0, 0] for x in (embeddings.detach(), moved))
        assert sign * (abs(after - LOG3) - abs(before - LOG3)) > 0


def test_authors_values():
    paper = GSLoRAPlusPlus(recipe='paper')
    assert (paper.prototype_bound, paper.push, paper.pull) == (18, 0.005, 0)
    assert paper.prototype_source == 'head' and paper.bound == 15
    few = GSLoRAPlusPlus(recipe='paper_face_few_shot')
    protocol = Protocol(tuple('abcdef'), [['a'], ['b'], ['c'], ['d'], ['e']])
    found = []
    for task in range(1, 6):
        protocol.partition(task).publish()
        found.append((few.push, few.beta))
    assert found == [(0.015, 0.3), (0.06, 0.4), (0.025, 0.28), (0.012, 0.2), (0.012, 0.2)]
    assert GSLoRAPlusPlus(recipe='paper_imagenet').push == 0.05


def test_bad_arguments():
    with pytest.raises(ForgettingError, match="'head_rows'.*embeddings or head"):
        GSLoRAPlusPlus(prototypes='head_rows')
    with pytest.raises(ForgettingError, match="'papr'"):
        GSLoRAPlusPlus(recipe='papr')


def predictions(states, teacher_states, beliefs, classes=(1,)):
    """A view as far as the measure of means reads it: (m, D), (m, D) and (m, C) numbers."""
    states = torch.tensor(states) if isinstance(states, list) else states
    return View(
        loss=torch.tensor(1.0),
        terms=dict(loss_cls=torch.tensor(1.0)),
        labels=torch.tensor([1]),
        logits=torch.zeros(1, 3),
        embeddings=states[:1],
        log_probs=torch.zeros(len(states), len(beliefs[0])),
        states=states,
        classes=torch.tensor(classes),
        gone=torch.tensor(classes),
        teacher_log_probs=torch.tensor(beliefs).log(),
        teacher_states=torch.as_tensor(teacher_states, dtype=states.dtype),
    )


def means(prototypes, **settings):
    made = GSLoRAPlusPlus(beta=0.0, drift=0.0, sparsity=dict(mode='none'), **settings)
    made.prototypes = torch.tensor(prototypes)
    return made


def test_means_by_hand():
    """Prototypes (0, 0), (0, 3), (6, 0): the centre is (2, 1); class 1 is to move by (2, -2)."""
    pp = means([[0.0, 0.0], [0.0, 3.0], [6.0, 0.0], [math.nan, math.nan]], push=0.5, pull=2.0)
    forget = predictions(
        states=[[2.0, 1.0], [5.0, 5.0], [7.0, 7.0], [2.0, 2.0]],
        teacher_states=[[0.0, 3.0], [5.0, 5.0], [0.0, 0.0], [0.0, 0.0]],
        beliefs=[[0.1, 0.9, 0, 0], [0.3, 0.6, 0, 0], [0.1, 0.2, 0, 0], [0.8, 0.1, 0, 0.1]],
    )
    retain = predictions([[1.0, 0.0]], [[0.0, 0.0]], [[0.5, 0.9, 0.2, 0.0]])
    losses = pp.losses(forget, retain)
    # The teacher is sure of the first two: moves (2, -2) and (0, 0), mean (1, -1), off by (-1, 1).
    assert losses['forget_loss_prototype'].item() == pytest.approx(0.5 * 2 / 2)
    # Squares of all moves, mean over 2 dimensions: 4, 0, 49, 4 and 1/2; weights: the belief in the
    # likeliest class but 1.
    expected = (0.1 * 4 + 0.3 * 0 + 0.1 * 49 + 0.8 * 4 + 0.5 * 0.5) / (0.1 + 0.3 + 0.1 + 0.8 + 0.5)
    assert losses['retain_loss_prototype'].item() == pytest.approx(2.0 * expected)
    assert pp.needs_teacher


def test_means_reached_give_no_gradient():
    """Where the mean of a class is the centre's, what varies about it is left alone."""
    pp = means([[0.0, 0.0], [0.0, 4.0], [6.0, 2.0]], push=1.0, pull=0.0)  # centre (2, 2)
    states = torch.tensor([[3.0, 3.0], [1.0, 1.0]], requires_grad=True)
    forget = predictions(states, [[1.0, 4.5], [-1.0, 3.5]], [[0.0, 0.9, 0.0]] * 2)
    retain = predictions([[0.0, 0.0]], [[0.0, 0.0]], [[0.9, 0.0, 0.0]])
    loss = pp.losses(forget, retain)['forget_loss_prototype']
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and not states.grad.any()


def test_a_view_without_a_sure_prediction():
    pp = means([[0.0, 0.0], [0.0, 4.0], [6.0, 2.0]], push=1.0, pull=0.0)
    both = predictions([[1.0, 1.0]], [[0.0, 0.0]], [[0.2, 0.3, 0.1]])
    assert pp.losses(both, both)['forget_loss_prototype'].item() == 0


def test_two_processes_make_the_joint_gradient(monkeypatch):
    """Halves of a batch on two processes: the mean of their gradients is that of the whole."""
    torch.manual_seed(0)
    states, teacher = torch.randn(7, 4).double(), torch.randn(7, 4).double()
    beliefs = torch.rand(7, 3).tolist()
    pp = means(torch.randn(3, 4).tolist(), push=1.0, pull=0.7)

    def gradient(rows):
        now = states[rows].clone().requires_grad_()
        both = predictions(now, teacher[rows], [beliefs[i] for i in rows], classes=(0, 1))
        losses = pp.losses(both, both)
        sum(v for k, v in losses.items() if 'prototype' in k).backward()
        return now.grad

    whole = gradient(list(range(7)))
    parts = [[0, 1, 2, 3], [4, 5, 6]]
    heard = [[], []]  # what each process gives to be averaged, in order

    def average_with(process, others, kept):
        others = iter(others)

        def mean(value):
            kept[process].append(value.detach())
            return (value.detach() + next(others, value.detach())) / 2

        for module in ('methods.gs_lora_pp', 'losses.over_processes'):
            monkeypatch.setattr(f'mmgslora.{module}.mean_over_processes', mean)

    for _ in range(3):  # later values depend on earlier averages
        kept, found = [[], []], torch.zeros(7, 4, dtype=torch.float64)
        for process, rows in enumerate(parts):
            average_with(process, heard[1 - process], kept)
            found[rows] = gradient(rows) / 2
        heard = kept
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-9)
