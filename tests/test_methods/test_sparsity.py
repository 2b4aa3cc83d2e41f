"""Sparsity on two groups whose arithmetic can be done by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup
from mmgslora.methods import GSLoRA
from mmgslora.methods.sparsity import Sparsity
from mmgslora.tuning import Full

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


def test_a_tuner_without_groups_is_refused_when_the_model_is_built():
    """Not in the first step of a run, after the pre-trained model was measured."""
    tune = Full()
    tune.attach(nn.Linear(2, 2), ())
    with pytest.raises(ForgettingError, match="Full has no groups .* set sparsity.mode='none'"):
        GSLoRA().check(tune)
    GSLoRA(sparsity=dict(mode='none')).check(tune)


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


@pytest.fixture
def small(moment):
    """The group at zero; with a layer that says whether it is held."""
    _, small = moment.model.tune.groups('block')
    small.layers.append(SimpleNamespace(held=False))
    small.B[0].data.zero_()
    return small


def test_groups_are_held_that_are_at_zero_twice(moment, small):
    """Looked for from 5 % of the task on, every ten steps: 10, 20, 30, ... of 200."""
    sparsity = Sparsity('proximal', alpha=1.0, select=0.9)
    moment.steps = 200
    for moment.step in range(60):
        if moment.step in (15, 25):  # away from zero at 20, back at 30
            small.B[0].data.fill_(float(moment.step == 15))
        sparsity.before_iter(moment)
        assert small.layers[0].held == (moment.step >= 40)


def test_when_groups_at_zero_are_looked_for(moment, small):
    """Of 50 steps in epochs of 9: from step 3 on, every ten, at each epoch, and for the refit."""
    sparsity, looks = Sparsity('proximal', alpha=1.0, select=0.46), []
    moment.steps = 50
    for moment.step in range(31):
        moment.epoch = moment.step // 9
        small.layers[0].held, sparsity._at_zero = False, {'small'}
        sparsity.before_iter(moment)
        if small.layers[0].held:
            looks.append(moment.step)
    assert looks == [3, 9, 10, 18, 20, 23, 27, 30]


def test_the_refit_holds_what_is_at_zero_for_the_first_time(moment, small):
    sparsity = Sparsity('proximal', alpha=1.0, select=0.5)
    moment.steps, moment.step = 200, 100
    sparsity.before_iter(moment)
    assert small.layers[0].held


def test_groups_at_zero_are_not_held_where_all_are(moment):
    """A step needs a gradient. They are put back to zero instead."""
    big, small = moment.model.tune.groups('block')
    small.B[0].data.zero_()
    sparsity = Sparsity('proximal', alpha=1.0, select=0.9)
    moment.steps = 40
    big.layers.append(SimpleNamespace(held=False))
    big.B[0].data.zero_()
    for moment.step in (10, 20):
        sparsity.before_iter(moment)
    big.B[0].data.fill_(1.0)
    sparsity.after_step(moment)
    assert not big.layers[0].held and not big.B[0].any()
    assert not sparsity.refits(moment)


@pytest.mark.parametrize('select', [0.5, 1.0], ids=['refit', 'selection'])
def test_a_resumed_task_holds_the_same_groups(moment, select):
    """A new object, in the middle of the task: what is zero then stays zero."""
    big, small = moment.model.tune.groups('block')
    small.B[0].data.zero_()
    moment.step = 1
    sparsity = Sparsity('proximal', alpha=1.0, select=select)
    sparsity.load_state_dict(dict(at_zero=['small']))
    sparsity.before_iter(moment)
    small.B[0].data.fill_(1.0)
    sparsity.after_step(moment)
    assert not small.B[0].any() and big.B[0].any()


@pytest.mark.parametrize(('last', 'held'), [(2, True), (5, False)])
def test_a_task_resumed_at_an_epoch_goes_on_like_the_whole(moment, last, held):
    """Epochs of 9 steps, looks at steps 3 and 9: a group is at zero after step ``last``."""
    groups = moment.model.tune.groups('block')
    for group_ in groups:
        group_.layers.append(SimpleNamespace(held=False))
    whole, resumed = (Sparsity('proximal', alpha=0.0, select=0.9) for _ in range(2))
    moment.steps = 50
    for moment.step in range(9):
        whole.before_iter(moment)
        if moment.step == last:
            groups[1].B[0].data.zero_()
        whole.after_step(moment)
    resumed.load_state_dict(whole.state_dict())
    moment.step, moment.epoch = 9, 1
    for sparsity in (whole, resumed):
        sparsity.before_iter(moment)
        assert [group_.layers[0].held for group_ in groups] == [False, held]
        for group_ in groups:
            group_.layers[0].held = False  # a model built anew


def test_a_task_begins_with_nothing_from_the_one_before(moment, small):
    """The group at zero learns again, the next look finds it for the first time."""
    sparsity = Sparsity('proximal', alpha=0.0, select=0.5)
    moment.steps, moment.step = 200, 100
    sparsity.before_iter(moment)
    assert small.layers[0].held
    sparsity.before_task(moment)
    small.layers[0].held = False
    small.B[0].data.fill_(1.0)
    sparsity.after_step(moment)
    assert small.B[0].all()
    small.B[0].data.zero_()
    moment.step = 10
    sparsity.before_iter(moment)
    assert not small.layers[0].held
    moment.model.tune.groups = lambda by: ['of a model built anew']
    sparsity.before_task(moment)
    assert sparsity.groups(moment) == ['of a model built anew']


def test_groups_are_those_that_were_asked_for(moment):
    asked, groups = [], moment.model.tune.groups('block')
    moment.model.tune.groups = lambda by: asked.append(by) or groups
    for settings in (dict(), dict(by='module')):
        Sparsity('penalty', alpha=1.0, **settings).losses(moment)
    assert asked == ['block', 'module']


def test_a_task_is_settled_where_nothing_is_selected_any_more(moment):
    moment.steps = 4
    modes = ('proximal', 'penalty', 'none')
    selecting = {mode: Sparsity(mode, alpha=1.0, select=0.5) for mode in modes}
    for moment.step, proximal in ((0, False), (1, False), (2, True), (3, True)):
        found = [selecting[mode].settled(moment) for mode in modes]
        assert found == [proximal, True, True]


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


@pytest.mark.parametrize(('mode', 'epochs'), [('penalty', 3), ('proximal', 9)])
def test_a_warm_up_that_never_ends_is_refused(mode, epochs):
    Sparsity(mode, alpha=1.0, warmup_epochs=2).check_epochs(epochs)
    Sparsity(mode, warmup_epochs=3).check_epochs(epochs)  # alpha is 0 anyway
    Sparsity('none', alpha=1.0, warmup_epochs=3).check_epochs(3)  # and counts nowhere
    with pytest.raises(ForgettingError, match='warmup_epochs is 3, .* it can be 2 at most'):
        Sparsity(mode, alpha=1.0, warmup_epochs=3).check_epochs(epochs)


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


def test_groups_that_nothing_drives_are_reported_all_the_same(moment):
    """Of a model with LoRA, by the norm of B: 5 and 0.1; nothing is at zero."""
    sparsity = Sparsity()
    sparsity.after_task(moment)
    assert sparsity.summary() == dict(
        groups=dict(big=5.0, small=pytest.approx(0.1)), zero_group_ratio=0.0
    )


def test_a_model_without_groups_has_none_to_report():
    moment = context(())
    sparsity = Sparsity()
    sparsity.after_task(moment)
    assert sparsity.summary() == {} and not sparsity.losses(moment)


@pytest.mark.parametrize('settings', [dict(select=2.0), dict(alpha=-1), dict(warmup_epochs=-1)])
def test_impossible_settings(settings):
    with pytest.raises(ForgettingError, match=f'{next(iter(settings))} is '):
        Sparsity('proximal', **settings)
