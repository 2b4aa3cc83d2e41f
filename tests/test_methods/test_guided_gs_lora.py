"""Losses of our guided method against values worked out by hand."""

import math

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.families.view import Outputs
from mmgslora.methods import GuidedGSLoRA

from .views import context, outputs, sides
from .views import view as made_view


def view(side, log_probs, teacher, drift=0.0, of=(), matched=()):
    """A side whose predictions are matched to no object, unless it says so."""
    return made_view(side, 1.0, log_probs, outputs(teacher), drift, of=of, matched=matched)


def guided(**settings):
    return GuidedGSLoRA(
        margin=1.0, bound=4.0, background_weight=0.0, sparsity=dict(mode='none'), **settings
    )


def test_hinge_by_hand():
    """Classes to forget 1 and 2. Where nothing is, the teacher gives them e^-4 and e^-6."""
    method = guided(beta=0.5, distill_weight=2.0)
    # Two predictions of the forget view hold a class; one of the retain view is empty.
    teacher = [[-20.0, math.log(1.0), -20.0], [math.log(1.0), -20.0, math.log(1.0)]]
    log_probs = [[-9.0, -3.0, -5.0], [-9.0, -30.0, -8.0]]
    empty = [[-50.0, -4.0, -6.0]]
    views = sides(view('forget', log_probs, teacher, 0.3), view('retain', empty, empty, 0.1))
    losses = method.losses(views, context(forget=(1, 2)))
    # Class 1 must come down to -4 - 1 from -3; class 2 to -6 - 1 and is at -8. The empty prediction
    # is 1 too high for both, and weighs what the teacher makes of it, squared.
    first, second = math.exp(-8), math.exp(-12)
    expected = (2 + first) / (1 + first) + (0 + second) / (1 + second)
    found = losses['forget_loss_cls'].item()
    assert found == pytest.approx(0.5 * expected / math.sqrt(2), rel=1e-6)  # of two classes
    assert losses['forget_loss_drift'].item() == pytest.approx(0.6)
    assert losses['retain_loss_drift'].item() == pytest.approx(0.2)
    assert losses.keys() == {'forget_loss_cls', 'forget_loss_drift', 'retain_loss_drift'}
    assert method.teachers == ('original',) and method.tune['rank'] == 16


def test_the_retain_view_is_not_matched():
    """What stays is said by the teacher alone; matching is slow on a CPU."""
    log_probs = [[-9.0, -3.0]]
    views = sides(view('forget', log_probs, log_probs), view('retain', log_probs, log_probs))
    views['retain'].match = None
    guided().losses(views, context())


def test_hinge_is_weighted_by_the_teacher():
    """All predictions are half empty, so the level is the mean of their log-probabilities.

    What the teacher sees in the retain view counts as well.
    """
    method = guided(beta=1.0, distill_weight=0.0)
    half, low = math.log(0.5), math.log(0.25)
    values = [[-9.0, 0.0], [-9.0, -2.5]], [[half, low], [half, half]]
    views = sides(view('forget', *values), view('retain', *values))
    level = (half + low) / 2
    loss = method.losses(views, context())['forget_loss_cls'].item()
    expected = 2 * (0.25**2 * (0.0 - level + 1) + 0.5**2 * max(0, -2.5 - level + 1)) / 1
    assert loss == pytest.approx(expected)  # the sum of squares, .62, counts as 1


@pytest.mark.skipif(torch.__version__ < (2, 4), reason='no float16 in autocast')
def test_the_level_is_not_taken_in_half_precision():
    """Nothing is in any of 16 x 900 predictions: minus 13 for each is beyond float16."""
    method, objects = guided(beta=1.0, distill_weight=0.0), dict(of=[0], matched=[0])
    views = sides(made_view('forget', 1.0, [[0.0]], **objects), made_view('retain', 1.0, [[0.0]]))
    for side, count, now, teacher in (('forget', 1, -12.5, 20.0), ('retain', 14400, -20.0, -13.0)):
        now, teacher = (
            Outputs(torch.full((count, 1), x), torch.zeros(count, 4), kind='sigmoid')
            for x in (now, teacher)
        )
        views[side].now, views[side].teachers = now, dict(original=teacher)
    with torch.autocast('cpu', torch.float16):
        loss = method.losses(views, context(names='a', forget=(0,)))['forget_loss_cls']
    assert loss.item() == pytest.approx(1.5, rel=1e-3)  # -12.5 must come down to -14


def test_an_object_counts_whatever_the_teacher_makes_of_it():
    """Predictions 0 and 2 are matched, to class 1 and to one that another view is about."""
    method = guided(beta=1.0, distill_weight=0.0)
    no, low = -50.0, math.log(0.1)
    log_probs = [[no, -2.0, no], [no, -3.0, no], [no, -1.0, no]]
    teacher = [[no, low, no], [no, low, no], [no, low, no]]
    empty = view('retain', [[no, -6.0, no]], [[no, -6.0, no]])
    forget = view('forget', log_probs, teacher, of=(1, 0), matched=(0, 2))
    loss = method.losses(sides(forget, empty), context())['forget_loss_cls'].item()
    bare = 1 - math.exp(-6)  # how empty the teacher takes the retain view to be
    level = (0.9 * 3 * low - 6.0 * bare) / (0.9 * 3 + bare)
    over = [x - level + 1 for x in (-2.0, -3.0, -1.0)]
    expected = (over[0] + 0.01 * over[1] + 0.01 * over[2]) / 1.02
    assert loss == pytest.approx(expected, rel=1e-4)


def test_every_class_to_forget_weighs_the_same():
    """Three objects of class 1 and one of class 2, all to come down by 1, then by 4 for class 2."""
    method = guided(beta=1.0, distill_weight=0.0)
    sure, no = math.log(1.0), -50.0
    teacher = [[no, sure, no]] * 3 + [[no, no, sure]]
    empty = view('retain', [[no, -4.0, -6.0]], [[no, -4.0, -6.0]])
    for rare, loss in ((-6.0, 1 + 1), (-3.0, 1 + 4)):
        log_probs = [[no, -4.0, no]] * 3 + [[no, no, rare]]
        views = sides(view('forget', log_probs, teacher), empty)
        losses = method.losses(views, context(forget=(1, 2)))
        found = losses['forget_loss_cls'].item()
        assert found == pytest.approx(loss / math.sqrt(2), rel=1e-4)


def test_classes_of_earlier_tasks_stay_below():
    """Class 2 is gone and has come up to 1 above what it may be; it weighs what a new one does."""
    method = guided(beta=1.0, distill_weight=0.0)
    sure, no = math.log(1.0), -50.0
    empty = view('retain', [[no, -7.0, -7.0]], [[no, -6.0, -6.0]])
    forget = view('forget', [[no, -7.0, no], [no, no, -6.0]], [[no, sure, no], [no, no, sure]])
    losses = method.losses(sides(forget, empty), context(forget=(1,), old=(2,)))
    assert losses['forget_loss_cls'].item() == pytest.approx(1.0, rel=1e-4)


def test_background_by_hand():
    """Held where nothing is, for what goes now and what went before; not where an object is."""
    method = GuidedGSLoRA(
        beta=0.0, distill_weight=0.0, background_weight=0.5, sparsity=dict(mode='none')
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
    method = guided(forget_loss='odds', beta=1.0, distill_weight=0.0)
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
    method = guided(forget_loss='odds', beta=1.0, distill_weight=0.0)
    log_probs = [[math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]]
    teacher = [[math.log(p) for p in (0.3, 0.5, 0.1, 0.1)]]
    views = sides(view('forget', log_probs, teacher), view('retain', log_probs, teacher))
    task = context(names='abcd', forget=(0, 1), old=(2,))
    found = method.losses(views, task)['forget_loss_cls'].item()
    assert found == pytest.approx(0.8 * (4 + math.log(0.6 / 0.4)), rel=1e-5)


def test_odds_are_guided_by_the_model_at_the_start_of_the_task():
    """It knows what is gone: earlier classes count in the distance, those of now do not."""
    method = guided(forget_loss='odds')
    assert method.teachers == ('task_start',) and 'rank' not in method.tune
    left_out = {}
    rows = [[math.log(p) for p in (0.1, 0.2, 0.7)]]
    for name, made in (('odds', method), ('predictions', guided())):
        views = sides(view('forget', rows, rows), view('retain', rows, rows))
        for each in views.values():
            each.now.divergence = lambda other, without, name=name: left_out.setdefault(
                name, without
            ).new_zeros(())
        made.losses(views, context(forget=(0,), old=(1,)))
    assert left_out['odds'].tolist() == [0] and left_out['predictions'].tolist() == [0, 1]


def test_two_processes_make_the_joint_gradient(monkeypatch):
    """Halves of a batch on two processes: the mean of their gradients is that of the whole."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(7, 3).double(), torch.randn(7, 3).double()
    method = GuidedGSLoRA(sparsity=dict(mode='none'))
    objects = {1: 0, 5: 1}  # prediction -> class

    def gradient(rows):
        now = logits[rows].clone().requires_grad_()
        matched = [i for i, row in enumerate(rows) if row in objects]
        of = [objects[rows[i]] for i in matched]
        both = {side: made_view(side, 1.0, [[0.0]], of=of, matched=matched) for side in 'fr'}
        both = sides(both['f'], both['r'])
        for made in both.values():
            made.now = Outputs(now, torch.zeros(len(rows), 4), kind='sigmoid')
            before = Outputs(teacher[rows], torch.zeros(len(rows), 4), kind='sigmoid')
            made.teachers = dict(original=before)
        sum(method.losses(both, context(forget=(0, 1))).values()).backward()
        return now.grad

    whole = gradient(list(range(7)))
    parts = [[0, 1, 2, 3], [4, 5, 6]]
    heard = [[], []]  # what each process gives to be averaged, in order
    monkeypatch.setattr('mmgslora.families.view.get_world_size', lambda: 2)

    def average_with(process, others, kept):
        others = iter(others)

        def mean(value):
            kept[process].append(value.detach())
            return (value.detach() + next(others, value.detach())) / 2

        for module in ('methods.guided_gs_lora', 'losses.over_processes', 'families.view'):
            monkeypatch.setattr(f'mmgslora.{module}.mean_over_processes', mean)

    for _ in range(3):  # later values depend on earlier averages
        kept, found = [[], []], torch.zeros(7, 3, dtype=torch.float64)
        for process, rows in enumerate(parts):
            average_with(process, heard[1 - process], kept)
            found[rows] = gradient(rows) / 2
        heard = kept
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-9)


def test_defaults():
    """Those that the class says, in which the demo and its tables were made."""
    method = GuidedGSLoRA()
    sparsity = dict(mode='proximal', alpha=0.25, by='block', warmup_epochs=0, select=1 / 3)
    assert method.settings() == dict(
        forget_loss='predictions',
        margin=3.0,
        bound=9.0,
        beta=0.4,
        distill_weight=10.0,
        background_weight=0.2,
        sparsity=sparsity,
        dropout=False,
    )
    assert method.parts == [method.sparsity]
    assert method.tune == dict(type='LoRA', rank=16, lora_alpha=2.0)


def test_beta_of_the_task_dropout_and_a_penalty_where_they_are_asked_for(groups):
    """Class 1 has odds of 1 to e, so the hinge is 4 - 1; the penalty sees A alone, B being 0."""
    method = GuidedGSLoRA(
        forget_loss='odds',
        bound=4.0,
        beta=[0.5, 2.0],
        background_weight=0.0,
        distill_weight=0.0,
        sparsity=dict(mode='penalty', alpha=0.5),
        dropout=True,
    )
    assert method.dropout
    rows = [[-math.log1p(1 / math.e), -math.log1p(math.e), -1e4]]
    views = sides(
        view('forget', rows, [[-1e4, -1e-9, -1e4]]), view('retain', rows, [[-1e4, -1e-9, -1e4]])
    )
    losses = method.losses(views, context(groups, number=2))
    assert losses['forget_loss_cls'].item() == pytest.approx(2.0 * (4 - 1), rel=1e-5)
    squares = [sum(a.double().square().sum().item() for a in group.A) for group in groups]
    penalty = 0.5 * sum(map(math.sqrt, squares))
    assert losses['loss_sparsity'].item() == pytest.approx(penalty, rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(forget_loss='boxes'), "forget_loss is 'boxes'; it can be predictions or odds"),
        (dict(distill_weight=-1), 'distill_weight is -1; it can be a number from 0 up'),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ForgettingError, match=words):
        GuidedGSLoRA(**arguments)
