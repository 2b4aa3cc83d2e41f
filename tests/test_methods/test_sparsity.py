"""Sparsity on two groups whose arithmetic can be done by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup
from mmgslora.methods.sparsity import Sparsity

from .views import context


def group(name, a, b):
    return LoRAGroup(name, [nn.Parameter(torch.tensor(a))], [nn.Parameter(torch.tensor(b))])


@pytest.fixture
def moment():
    """Two groups of four B entries: norms 5 and 0.1; lr 0.1; two epochs of a step each."""
    groups = [group('big', [[1.0, 2.0]], [[3.0, 0.0], [0.0, 4.0]])]
    groups.append(group('small', [[2.0, 0.0]], [[0.1, 0.0], [0.0, 0.0]]))
    optimizer = torch.optim.SGD([b for g in groups for b in g.B], lr=0.1)
    return context(groups, steps=2, optimizer=optimizer)


def step(sparsity, moment):
    sparsity.before_iter(moment)
    sparsity.after_step(moment)


def test_proximal_step_selects_then_refits(moment):
    big, small = moment.model.tune.groups('block')
    sparsity = Sparsity('proximal', alpha=1.0, select=0.5)
    sparsity.before_task(moment)
    step(sparsity, moment)
    # threshold = lr * alpha * sqrt(4 entries) = 0.2: 5 -> 4.8 and 0.1 -> 0
    assert torch.allclose(big.B[0], torch.tensor([[3.0, 0.0], [0.0, 4.0]]) * 4.8 / 5)
    assert not small.B[0].any()
    moment.step = moment.epoch = 1
    assert sparsity.alpha_at(moment) == 0 and sparsity.refits(moment)
    sparsity.before_iter(moment)
    with torch.no_grad():  # the optimizer moves both
        big.B[0].fill_(1.0)
        small.B[0].fill_(1.0)
    sparsity.after_step(moment)
    assert torch.equal(big.B[0], torch.ones(2, 2)) and not small.B[0].any()
    sparsity.after_task(moment)
    assert sparsity.summary() == dict(groups=dict(big=2.0, small=0.0), zero_group_ratio=0.5)


def test_groups_at_zero_are_held_at_the_start_of_an_epoch(moment):
    """Not within the first tenth of a task, where all are zero, nor within an epoch."""
    big, small = moment.model.tune.groups('block')
    small.layers.append(SimpleNamespace(held=False))
    small.B[0].data.zero_()
    sparsity = Sparsity('proximal', alpha=1.0, select=0.9)
    moment.steps = 40
    for moment.step, moment.epoch, held in ((0, 0, False), (3, 1, False), (4, 1, True)):
        sparsity.before_iter(moment)
        assert small.layers[0].held == held
    # With all at zero none is left out: a step needs a gradient. They are put back to zero instead.
    big.layers.append(SimpleNamespace(held=False))
    big.B[0].data.zero_()
    moment.step, moment.epoch = 20, 5
    sparsity.before_iter(moment)
    big.B[0].data.fill_(1.0)
    sparsity.after_step(moment)
    assert not big.layers[0].held and not big.B[0].any()
    assert not sparsity.refits(moment)


def test_a_resumed_task_holds_the_same_groups(moment):
    """A new object, in the middle of the refit: what is zero then stays zero."""
    big, small = moment.model.tune.groups('block')
    small.B[0].data.zero_()
    moment.step = 1
    sparsity = Sparsity('proximal', alpha=1.0, select=0.5)
    sparsity.before_iter(moment)
    small.B[0].data.fill_(1.0)
    sparsity.after_step(moment)
    assert not small.B[0].any() and big.B[0].any()


def test_every_group_shrinks_at_its_own_learning_rate(moment):
    big, small = moment.model.tune.groups('block')
    other = nn.Parameter(torch.zeros(3))
    moment.optimizer = torch.optim.SGD(
        [dict(params=[other], lr=1.0), dict(params=small.B, lr=0.01), dict(params=big.B, lr=0.5)],
        lr=0.1,
    )
    step(Sparsity('proximal', alpha=1.0, select=1.0), moment)
    # thresholds: 0.5 * 2 and 0.01 * 2; norms were 5 and 0.1
    assert big.norm_B().item() == pytest.approx(4.0)
    assert small.norm_B().item() == pytest.approx(0.08)


def test_a_group_of_two_learning_rates_is_refused(moment):
    big, _ = moment.model.tune.groups('block')
    big.B.append(nn.Parameter(torch.ones(1)))
    moment.optimizer = torch.optim.SGD(
        [dict(params=big.B[:1]), dict(params=big.B[1:], lr=0.5)], lr=0.1
    )
    with pytest.raises(ForgettingError, match=r"'big' at the learning rates \[0.1, 0.5\]"):
        step(Sparsity('proximal', alpha=1.0, select=1.0), moment)


def test_alpha_warms_up_as_a_step(moment):
    sparsity, alphas = Sparsity('penalty', alpha=3e-4, warmup_epochs=2), []
    for moment.epoch in range(4):
        alphas.append(sparsity.alpha_at(moment))
    assert alphas == [0, 0, 3e-4, 3e-4]
    moment.epoch = 0
    assert not sparsity.losses(moment)


def test_penalty_moves_nothing_itself_and_reports_the_joint_norm(moment):
    big, _ = moment.model.tune.groups('block')
    sparsity = Sparsity('penalty', alpha=1.0)
    step(sparsity, moment)
    assert big.B[0][1, 1] == 4
    sparsity.after_task(moment)
    norms = sparsity.summary()['groups']
    assert norms['big'] == pytest.approx(math.sqrt(1 + 4 + 9 + 16))
    assert norms['small'] == pytest.approx(math.sqrt(4 + 0.01))
    assert sparsity.losses(moment)['loss_sparsity'].item() == pytest.approx(sum(norms.values()))
    assert sparsity.summary()['zero_group_ratio'] == 0


def test_a_model_without_groups_has_none_to_report():
    moment = context(())
    sparsity = Sparsity()
    sparsity.after_task(moment)
    assert sparsity.summary() == {} and not sparsity.losses(moment)


@pytest.mark.parametrize('settings', [dict(select=2.0), dict(alpha=-1), dict(warmup_epochs=-1)])
def test_impossible_settings(settings):
    with pytest.raises(ForgettingError, match=f'{next(iter(settings))} is '):
        Sparsity('proximal', **settings)
