"""Limits on training data: two measures by hand, the mean of a pass, and what does not count."""

import math
from types import SimpleNamespace

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.families.view import Outputs, View
from mmgslora.methods import Task
from mmgslora.methods.served import Served


def logit(*rows):
    p = torch.tensor(rows, dtype=torch.float64)
    return p.log() - (1 - p).log()


def outputs(*rows):
    return Outputs(logit(*rows), torch.zeros(len(rows), 1), kind='sigmoid')


def view(side, now, before):
    return View(side, outputs(*now), lambda: None, {'task_start': outputs(*before)})


@pytest.fixture
def context():
    empty = torch.tensor([], dtype=torch.long)
    task = Task(1, ('a', 'b'), torch.tensor([0]), torch.tensor([1]), empty, empty)
    method = SimpleNamespace(settled=lambda context: context.step >= 1)
    return SimpleNamespace(task=task, step=1, model=SimpleNamespace(method=method))


def step(score_now, drifted=0.5):
    """Two predictions of class a, of which the teacher is sure by 0.8 and 0.4; one of b by 0.5."""
    return dict(
        forget=view('forget', [[score_now, 0.5], [0.2, 0.5]], [[0.8, 0.5], [0.4, 0.5]]),
        retain=view('retain', [[0.9, drifted]], [[0.1, 0.5]]),
    )


def test_by_hand_and_the_mean_of_a_pass(context):
    served = Served(forget_score=1, drift=1)
    served.add(step(0.1), context)
    served.add(step(0.4, drifted=0.25), context)
    found = served.end_pass()
    # (0.8 * 0.1 + 0.4 * 0.2) / 1.2 and (0.8 * 0.4 + 0.4 * 0.2) / 1.2
    assert found['forget_score'] == pytest.approx((0.16 / 1.2 + 0.4 / 1.2) / 2)
    # Of b alone: KL(0.5 | 0.25), over one expected object at least; class a does not count.
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found['drift'] == pytest.approx(kl / 2)
    assert found['served'] is True
    assert served.end_pass() is None  # a pass begins with nothing


@pytest.mark.parametrize('limits', [dict(forget_score=0.13), dict(drift=0.001)])
def test_both_limits_count(context, limits):
    served = Served(**{'forget_score': 1, 'drift': 1, **limits})
    served.add(step(0.1, drifted=0.4), context)
    assert served.end_pass()['served'] is False


def test_a_pass_that_selects_counts_for_nothing(context):
    served = Served(forget_score=1, drift=1)
    for first, expected in ((0, False), (1, True)):
        for context.step in (first, 2):
            served.add(step(0.1), context)
        assert served.end_pass()['served'] is expected


def test_a_class_that_went_earlier_may_drift():
    """Of a, forgotten now, b, earlier, and c, at 1/2: c alone has not moved."""
    one, two, three = (torch.tensor([label]) for label in range(3))
    method = SimpleNamespace(settled=lambda context: True)
    task = Task(2, ('a', 'b', 'c'), one, three, two, one[:0])
    moment = SimpleNamespace(task=task, model=SimpleNamespace(method=method))
    views = dict(
        forget=view('forget', [[0.1, 0.1, 0.5]], [[0.9, 0.9, 0.5]]),
        retain=view('retain', [[0.1, 0.1, 0.5]], [[0.9, 0.9, 0.5]]),
    )
    served = Served()
    served.add(views, moment)
    assert served.end_pass()['drift'] == 0


def test_the_means_are_those_of_all_processes(context, monkeypatch):
    """Another has half as much of both."""
    monkeypatch.setattr('mmgslora.methods.served.mean_over_processes', lambda own: own * 0.75)
    served = Served(forget_score=1, drift=1)
    served.add(step(0.1, drifted=0.25), context)
    found, kl = served.end_pass(), 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found['forget_score'] == pytest.approx(0.75 * 0.16 / 1.2)
    assert found['drift'] == pytest.approx(0.75 * kl)


def test_one_side_says_nothing(context):
    served = Served()
    served.add({'forget': step(0.1)['forget']}, context)
    assert served.end_pass() is None


def test_the_graph_of_the_losses_is_left_alone(context):
    views = step(0.1)
    views['forget'].now.logits.requires_grad_()
    assert 'log_probs' not in vars(views['forget'].now)
    assert views['forget'].now.log_probs.requires_grad  # a method's losses have read it by then
    Served().add(views, context)
    assert views['forget'].now.log_probs.requires_grad


def test_limits_are_numbers_from_0_up():
    assert Served().settings() == dict(forget_score=0.02, drift=0.035)
    with pytest.raises(ForgettingError, match='drift is -1; it can be a number from 0 up'):
        Served(drift=-1)
