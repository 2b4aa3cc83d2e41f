"""The hook on two groups whose arithmetic can be done by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmgslora.engine import GroupSparsityHook
from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup


def group(name, a, b):
    return LoRAGroup(name, [nn.Parameter(torch.tensor(a))], [nn.Parameter(torch.tensor(b))])


@pytest.fixture
def setting():
    """Two groups of four B entries: norms 5 and 0.1; lr 0.1."""
    groups = [group('big', [[1.0, 2.0]], [[3.0, 0.0], [0.0, 4.0]])]
    groups.append(group('small', [[2.0, 0.0]], [[0.1, 0.0], [0.0, 0.0]]))
    method = SimpleNamespace(alpha=0.0, groups=groups, sparsity={})
    infos = {}
    runner = SimpleNamespace(
        train_loop=SimpleNamespace(
            model=SimpleNamespace(method=method), epoch_in_task=0, epochs_per_task=2
        ),
        optim_wrapper=SimpleNamespace(
            optimizer=torch.optim.SGD([b for g in groups for b in g.B], lr=0.1)
        ),
        message_hub=SimpleNamespace(update_info=infos.__setitem__),
        infos=infos,
    )
    return runner, method, groups


def test_proximal_step_selects_then_refits(setting):
    runner, method, (big, small) = setting
    method.sparsity = dict(mode='proximal', alpha=1.0, warmup_epochs=0, select=0.5)
    hook = GroupSparsityHook()
    hook.before_train_epoch(runner)
    runner.optim_wrapper.optimizer.step()
    # threshold = lr * alpha * sqrt(4 entries) = 0.2: 5 -> 4.8 and 0.1 -> 0
    assert torch.allclose(big.B[0], torch.tensor([[3.0, 0.0], [0.0, 4.0]]) * 4.8 / 5)
    assert not small.B[0].any()
    runner.train_loop.epoch_in_task = 1
    hook.before_train_epoch(runner)
    assert method.alpha == 0
    with torch.no_grad():  # an optimizer step moves both
        big.B[0].fill_(1.0)
        small.B[0].fill_(1.0)
    runner.optim_wrapper.optimizer.step()
    assert torch.equal(big.B[0], torch.ones(2, 2)) and not small.B[0].any()
    hook.before_merge(runner)
    assert runner.infos == dict(group_norms=dict(big=2.0, small=0.0), zero_group_ratio=0.5)


def test_every_group_shrinks_at_its_own_learning_rate(setting):
    runner, method, (big, small) = setting
    method.sparsity = dict(mode='proximal', alpha=1.0, warmup_epochs=0, select=1.0)
    other = nn.Parameter(torch.zeros(3))
    runner.optim_wrapper.optimizer = torch.optim.SGD(
        [dict(params=[other], lr=1.0), dict(params=small.B, lr=0.01), dict(params=big.B, lr=0.5)],
        lr=0.1,
    )
    GroupSparsityHook().before_train_epoch(runner)
    runner.optim_wrapper.optimizer.step()
    # thresholds: 0.5 * 2 and 0.01 * 2; norms were 5 and 0.1
    assert big.norm_B().item() == pytest.approx(4.0)
    assert small.norm_B().item() == pytest.approx(0.08)


def test_a_group_of_two_learning_rates_is_refused(setting):
    runner, method, (big, _) = setting
    method.sparsity = dict(mode='proximal', alpha=1.0, warmup_epochs=0, select=1.0)
    big.B.append(nn.Parameter(torch.ones(1)))
    runner.optim_wrapper.optimizer = torch.optim.SGD(
        [dict(params=big.B[:1]), dict(params=big.B[1:], lr=0.5)], lr=0.1
    )
    GroupSparsityHook().before_train_epoch(runner)
    with pytest.raises(ForgettingError, match=r"'big' at the learning rates \[0.1, 0.5\]"):
        runner.optim_wrapper.optimizer.step()


def test_alpha_warms_up_as_a_step(setting):
    runner, method, _ = setting
    method.sparsity = dict(mode='penalty', alpha=3e-4, warmup_epochs=2, select=0.0)
    alphas = []
    for runner.train_loop.epoch_in_task in range(4):
        GroupSparsityHook().before_train_epoch(runner)
        alphas.append(method.alpha)
    assert alphas == [0, 0, 3e-4, 3e-4]


def test_penalty_moves_nothing_itself_and_reports_the_joint_norm(setting):
    runner, method, (big, _) = setting
    method.sparsity = dict(mode='penalty', alpha=1.0, warmup_epochs=0, select=0.0)
    hook = GroupSparsityHook()
    hook.before_train_epoch(runner)
    runner.optim_wrapper.optimizer.step()
    hook.before_merge(runner)
    assert big.B[0][1, 1] == 4
    norms = runner.infos['group_norms']
    assert norms['big'] == pytest.approx(math.sqrt(1 + 4 + 9 + 16))
    assert norms['small'] == pytest.approx(math.sqrt(4 + 0.01))
    assert runner.infos['zero_group_ratio'] == 0
