"""Losses of our guided method against values worked out by hand."""

import math

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.families.view import Outputs
from mmgslora.methods import GuidedGSLoRA

from .views import context, outputs, sides
from .views import view as made_view


def view(side, log_probs, teacher, drift=0.0):
    return made_view(side, 1.0, log_probs, outputs(teacher), drift)


def without_prototypes(**settings):
    return GuidedGSLoRA(
        margin=1.0,
        bound=4.0,
        background_weight=0.0,
        prototype_weight=0.0,
        feature_distill_weight=0.0,
        sparsity=dict(mode='none'),
        **settings,
    )


def test_hinge_by_hand():
    """Classes to forget 1 and 2. Where nothing is, the teacher gives them e^-4 and e^-6."""
    method = without_prototypes(beta=0.5, distill_weight=2.0)
    # Two predictions of the forget view hold a class; one of the retain view is empty.
    teacher = [[-20.0, math.log(1.0), -20.0], [math.log(1.0), -20.0, math.log(1.0)]]
    log_probs = [[-9.0, -3.0, -5.0], [-9.0, -30.0, -8.0]]
    empty = [[-50.0, -4.0, -6.0]]
    views = sides(view('forget', log_probs, teacher, 0.3), view('retain', empty, empty, 0.1))
    losses = method.losses(views, context(forget=(1, 2)))
    # Class 1 must come down to -4 - 1 from -3; class 2 to -6 - 1 and is at -8.
    assert losses['forget_loss_cls'].item() == pytest.approx(0.5 * (2 + 0), rel=1e-4)
    assert losses['forget_loss_drift'].item() == pytest.approx(0.6)
    assert losses['retain_loss_drift'].item() == pytest.approx(0.2)
    assert 'forget_loss_bbox' not in losses and method.teachers == ('task_start',)
    assert len(method.parts) == 1  # no prototypes are computed
    assert not any('prototype' in name or 'background' in name for name in losses)


def test_labels_of_the_retain_view_are_an_option():
    """Half of the task loss; and with 0 nothing is matched, for which a view would be asked."""
    log_probs = [[-9.0, -3.0]]
    views = sides(view('forget', log_probs, log_probs), view('retain', log_probs, log_probs))
    whole = views['retain'].terms
    losses = without_prototypes(retain_weight=0.5).losses(views, context())
    assert {name: losses[f'retain_{name}'].item() for name in whole} == {
        name: pytest.approx(value.item() / 2) for name, value in whole.items()
    }
    losses = without_prototypes(retain_weight=0.0).losses(views, context())
    assert not {f'retain_{name}' for name in whole} & set(losses)
    assert 'retain_loss_drift' in losses and 'forget_loss_cls' in losses


def test_hinge_is_weighted_by_the_teacher():
    """Both predictions are half empty, so the level is the mean of their log-probabilities."""
    method = without_prototypes(beta=1.0, distill_weight=0.0)
    half, low = math.log(0.5), math.log(0.25)
    values = [[-9.0, 0.0], [-9.0, -2.5]], [[half, low], [half, half]]
    views = sides(view('forget', *values), view('retain', *values))
    level = (half + low) / 2
    loss = method.losses(views, context())['forget_loss_cls'].item()
    expected = (0.25**2 * (0.0 - level + 1) + 0.5**2 * max(0, -2.5 - level + 1)) / 1
    assert loss == pytest.approx(expected)  # the sum of squares, .31, counts as 1


def test_every_class_to_forget_weighs_the_same():
    """Three objects of class 1 and one of class 2, all to come down by 1, then by 4 for class 2."""
    method = without_prototypes(beta=1.0, distill_weight=0.0)
    sure, no = math.log(1.0), -50.0
    teacher = [[no, sure, no]] * 3 + [[no, no, sure]]
    empty = view('retain', [[no, -4.0, -6.0]], [[no, -4.0, -6.0]])
    for rare, loss in ((-6.0, 1 + 1), (-3.0, 1 + 4)):
        log_probs = [[no, -4.0, no]] * 3 + [[no, no, rare]]
        views = sides(view('forget', log_probs, teacher), empty)
        losses = method.losses(views, context(forget=(1, 2)))
        assert losses['forget_loss_cls'].item() == pytest.approx(loss, rel=1e-4)


def test_background_by_hand():
    """Held where nothing is, for what goes now and what went before; not where an object is."""
    method = GuidedGSLoRA(
        beta=0.0,
        distill_weight=0.0,
        background_weight=0.5,
        prototype_weight=0.0,
        feature_distill_weight=0.0,
        sparsity=dict(mode='none'),
    )
    half = math.log(0.5)
    forget = view('forget', [[-1.0, -7.0, -5.0]], [[math.log(1.0), -4.0, -5.0]])
    now, teacher = (
        [[half, -6.0, -30.0], [half, -20.0, -8.0]],
        [[half, -4.0, -12.0], [half, -4.0, -9.5]],
    )
    views = sides(forget, view('retain', now, teacher))
    loss = method.losses(views, context(old=(2,)))['loss_background'].item()
    # Weights 0, .5, .5. Row 1: (-2)^2 and nothing, both being negligible. Row 2: (-16)^2, 1.5^2.
    expected = 0.5 * (0.5 * (4 + 0) / 2 + 0.5 * (256 + 2.25) / 2) / 1
    assert loss == pytest.approx(expected)


def test_odds_by_hand():
    """p = (1/4, 3/4, 0+): the odds of class 1 are 3; where p is 1 the slope is still 1."""
    method = without_prototypes(forget_loss='odds', beta=1.0, distill_weight=0.0)
    log_probs = [[math.log(0.25), math.log(0.75), -1e4]]
    teacher = [[math.log(0.2), math.log(0.8), -1e4]]
    views = sides(view('forget', log_probs, teacher), view('retain', log_probs, teacher))
    losses = method.losses(views, context())
    assert losses['forget_loss_cls'].item() == pytest.approx(0.8 * (4 + math.log(3)), rel=1e-5)
    logits = torch.tensor([[0.0, 60.0, 0.0]], requires_grad=True)  # p is 1 in float32
    for made in views.values():
        made.now = Outputs(logits, torch.zeros(1, 4))
    method.losses(views, context())['forget_loss_cls'].backward()
    assert logits.grad[0, 1].item() == pytest.approx(0.8, rel=1e-4)  # the teacher's probability


def test_odds_are_those_of_all_that_must_be_gone():
    """An image of class 1 must not be called 2, which was forgotten earlier, nor 0."""
    method = without_prototypes(forget_loss='odds', beta=1.0, distill_weight=0.0)
    log_probs = [[math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]]
    teacher = [[math.log(p) for p in (0.3, 0.5, 0.1, 0.1)]]
    views = sides(view('forget', log_probs, teacher), view('retain', log_probs, teacher))
    task = context(names='abcd', forget=(0, 1), old=(2,))
    found = method.losses(views, task)['forget_loss_cls'].item()
    assert found == pytest.approx(0.8 * (4 + math.log(0.6 / 0.4)), rel=1e-5)


def predictions(side, states, teacher_states, teacher_probs):
    """A view as far as the terms of the embeddings read it: (m, D), (m, D) and (m, C) numbers."""
    states = torch.as_tensor(states)
    before = outputs(
        torch.tensor(teacher_probs).log(), torch.as_tensor(teacher_states, dtype=states.dtype)
    )
    flat = torch.zeros(len(states), len(teacher_probs[0]))
    return made_view(side, 1.0, flat, before, embeddings=states)


def means(prototypes, **settings):
    made = GuidedGSLoRA(
        beta=0.0,
        distill_weight=0.0,
        background_weight=0.0,
        sparsity=dict(mode='none'),
        **settings,
    )
    made._prototypes.values = torch.tensor(prototypes)
    return made


def test_means_by_hand():
    """Prototypes (0, 0), (0, 3), (6, 0): the centre is (2, 1); class 1 is to move by (2, -2)."""
    pp = means(
        [[0.0, 0.0], [0.0, 3.0], [6.0, 0.0], [math.nan, math.nan]],
        prototype_weight=0.5,
        feature_distill_weight=2.0,
    )
    forget = predictions(
        'forget',
        states=[[2.0, 1.0], [5.0, 5.0], [7.0, 7.0], [2.0, 2.0]],
        teacher_states=[[0.0, 3.0], [5.0, 5.0], [0.0, 0.0], [0.0, 0.0]],
        teacher_probs=[[0.1, 0.9, 0, 0], [0.3, 0.6, 0, 0], [0.1, 0.2, 0, 0], [0.8, 0.1, 0, 0.1]],
    )
    retain = predictions('retain', [[1.0, 0.0]], [[0.0, 0.0]], [[0.5, 0.9, 0.2, 0.0]])
    losses = pp.losses(sides(forget, retain), context(names='abcd'))
    # The teacher is sure of the first two: moves (2, -2) and (0, 0), mean (1, -1), off by (-1, 1).
    assert losses['forget_loss_prototype'].item() == pytest.approx(0.5 * 2 / 2)
    # Squares of all moves, mean over 2 dimensions: 4, 0, 49, 4 and 1/2; weights: the
    # teacher's probability of the likeliest class but 1.
    expected = (0.1 * 4 + 0.3 * 0 + 0.1 * 49 + 0.8 * 4 + 0.5 * 0.5) / (0.1 + 0.3 + 0.1 + 0.8 + 0.5)
    assert losses['retain_loss_prototype'].item() == pytest.approx(2.0 * expected)
    assert pp.teachers == ('task_start',) and len(pp.parts) == 2


def test_means_reached_give_no_gradient():
    """Where the mean of a class is the centre's, what varies about it is left alone."""
    pp = means(
        [[0.0, 0.0], [0.0, 4.0], [6.0, 2.0]], prototype_weight=1.0, feature_distill_weight=0.0
    )  # centre (2, 2)
    states = torch.tensor([[3.0, 3.0], [1.0, 1.0]], requires_grad=True)
    forget = predictions('forget', states, [[1.0, 4.5], [-1.0, 3.5]], [[0.0, 0.9, 0.0]] * 2)
    retain = predictions('retain', [[0.0, 0.0]], [[0.0, 0.0]], [[0.9, 0.0, 0.0]])
    loss = pp.losses(sides(forget, retain), context())['forget_loss_prototype']
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and not states.grad.any()


def test_a_view_without_a_sure_prediction():
    pp = means(
        [[0.0, 0.0], [0.0, 4.0], [6.0, 2.0]], prototype_weight=1.0, feature_distill_weight=0.0
    )
    both = [predictions(s, [[1.0, 1.0]], [[0.0, 0.0]], [[0.2, 0.3, 0.1]]) for s in 'fr']
    assert pp.losses(sides(*both), context())['forget_loss_prototype'].item() == 0


def test_two_processes_make_the_joint_gradient(monkeypatch):
    """Halves of a batch on two processes: the mean of their gradients is that of the whole."""
    torch.manual_seed(0)
    states, teacher = torch.randn(7, 4).double(), torch.randn(7, 4).double()
    teacher_probs = torch.rand(7, 3).tolist()
    pp = means(torch.randn(3, 4).tolist(), prototype_weight=1.0, feature_distill_weight=0.7)

    def gradient(rows):
        now = states[rows].clone().requires_grad_()
        probs = [teacher_probs[i] for i in rows]
        both = [predictions(side, now, teacher[rows], probs) for side in 'fr']
        losses = pp.losses(sides(*both), context(forget=(0, 1)))
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

        for module in ('methods.guided_gs_lora', 'losses.over_processes', 'families.view'):
            monkeypatch.setattr(f'mmgslora.{module}.mean_over_processes', mean)

    for _ in range(3):  # later values depend on earlier averages
        kept, found = [[], []], torch.zeros(7, 4, dtype=torch.float64)
        for process, rows in enumerate(parts):
            average_with(process, heard[1 - process], kept)
            found[rows] = gradient(rows) / 2
        heard = kept
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-9)


def test_one_weight_of_the_embeddings_needs_no_prototypes():
    """Holding what stays compares with the teacher alone."""
    holding = GuidedGSLoRA(beta=0.0, distill_weight=0.0, prototype_weight=0)
    assert len(holding.parts) == 1
    both = [predictions(side, [[1.0, 1.0]], [[0.0, 2.0]], [[0.8, 0.1, 0.1]]) for side in 'fr']
    losses = holding.losses(sides(*both), context())
    assert losses['retain_loss_prototype'].item() == pytest.approx(0.5 * 1)
    assert 'forget_loss_prototype' not in losses
    assert len(GuidedGSLoRA(prototype_weight=[0, 1]).parts) == 2


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(forget_loss='boxes'), "forget_loss is 'boxes'; it can be predictions or odds"),
        (dict(prototypes='rows'), "prototypes is 'rows'; it can be embeddings or head"),
        (dict(distill_weight=-1), 'distill_weight is -1; it can be a number from 0 up'),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ForgettingError, match=words):
        GuidedGSLoRA(**arguments)
