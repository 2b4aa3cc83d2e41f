"""The baselines on a linear softmax model, against the steps of their papers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.families.view import Matching, Outputs, View
from mmgslora.methods import SCRUB, Context, NegGradPlus, SalUn

from . import reference_steps as reference
from .views import context as made_context
from .views import labels

NO_BOUND = 1e6
FORGET, RETAIN = (1, 2), (0, 3, 4)


class Linear(nn.Module):
    """Five classes, three numbers to tell them by, and one batch of data."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=draw)

        self.plain_model = nn.Linear(3, 5, bias=False).double()
        self.plain_model.weight.data, self.teacher = normal(5, 3), normal(5, 3)
        self.forget = normal(4, 3), labels([1, 2, 1, 1])
        self.retain = normal(6, 3), labels([0, 3, 4, 4, 0, 3])

    @property
    def weight(self):
        return self.plain_model.weight

    def data_preprocessor(self, batch, training):
        return dict(noise=batch())

    def views(self, noise=0.0, sides=('forget', 'retain'), teachers=()):
        return {side: self._view(side, *getattr(self, side), noise) for side in sides}

    def _view(self, side, inputs, true, noise):
        logits = (inputs + noise) @ self.weight.T
        rows, terms = torch.arange(len(true)), dict(loss_ce=F.cross_entropy(logits, true))
        original = Outputs(inputs @ self.teacher.T, inputs)
        return View(
            side,
            Outputs(logits, inputs),
            lambda: Matching(true, rows, terms),
            dict(original=original),
        )


@pytest.fixture
def context() -> Context:
    made = made_context(names=tuple('abcde'), forget=FORGET)
    made.model = Linear()
    return made


def stepped(method, context, sides):
    """The weight after a step of SGD with a learning rate of 1."""
    losses = method.losses(context.model.views(sides=sides), context)
    (gradient,) = torch.autograd.grad(sum(losses.values()), context.model.weight)
    return context.model.weight.detach() - gradient


def test_neg_grad_plus(context):
    model = context.model
    found = stepped(NegGradPlus(beta=0.3, bound=NO_BOUND), context, ('forget', 'retain'))
    expected = reference.neg_grad_plus_step(
        model.weight.detach(), model.forget, model.retain, alpha=0.7, lr=1
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('beta', [1.5, [0.1, 2]])
def test_neg_grad_plus_never_ascends_on_what_stays(beta):
    with pytest.raises(ForgettingError, match='beta is .*; it can be a number from 0 to 1, or a'):
        NegGradPlus(beta=beta)


def test_salun(context):
    model, method = context.model, SalUn(saliency=0.4, alpha=0.5)
    context.loader = [lambda: 0.0]
    method.before_task(context)
    weight = model.weight.detach().clone()
    mask = reference.salun_mask(weight, model.forget, share=0.4)
    # As MethodHook does it, with weight decay, which moves what has no gradient as well.
    model.forget = model.forget[0], labels([0, 3, 3, 4])
    optimizer = torch.optim.SGD([model.weight], lr=1, weight_decay=0.1)
    sum(method.losses(model.views(), context).values()).backward()
    method.before_step(context)
    optimizer.step()
    method.after_step(context)
    expected = reference.salun_step(weight, mask, model.forget, model.retain, 2, 0.5)
    torch.testing.assert_close(model.weight.detach(), expected - 0.1 * mask * weight)


def test_salun_changes_nothing_that_has_no_gradient(context):
    """Ten of 15 weights have one: of the share of 0.8, or 12, those ten alone may change."""
    model, method = context.model, SalUn(saliency=0.8)
    model.forget[0][:, 2] = 0
    context.loader = [lambda: 0.0]
    method.before_task(context)
    mask = method.state_dict()['masks']['weight']
    assert mask.tolist() == [[True, True, False]] * 5


def test_saluns_mask_is_the_same_whatever_was_drawn_before(context):
    """As of a run that is resumed between two tasks; one of another seed draws others."""
    masks = []
    context.loader = [lambda: torch.randn(3, dtype=torch.float64)] * 3
    for context.seed, drawn in ((0, 0), (0, 1), (0, 2), (1, 0)):
        torch.rand(drawn)
        method = SalUn()
        method.before_task(context)
        masks.append(method.state_dict()['masks']['weight'])
    *same, other = masks
    assert all(torch.equal(mask, masks[0]) for mask in same) and not torch.equal(other, masks[0])


def test_saluns_mask_is_that_of_a_whole_pass_without_dropout(context):
    """The gradients of three batches are summed, as those of their images together are."""
    model, method, training = context.model, SalUn(saliency=0.4), []
    shifts = (0.0, 2.0, -1.0)
    context.loader = [
        lambda shift=shift: training.append(model.training) or shift for shift in shifts
    ]
    inputs, true = model.forget
    pass_ = torch.cat([inputs + shift for shift in shifts]), true.repeat(3)
    model.train()
    method.before_task(context)
    weight, found = model.weight.detach(), method.state_dict()['masks']['weight']
    assert torch.equal(found, reference.salun_mask(weight, pass_, share=0.4))
    for shift in shifts:  # no single batch says so
        one = reference.salun_mask(weight, (inputs + shift, true), share=0.4)
        assert not torch.equal(found, one)
    assert training == [False] * 3


def test_salun_relabels_what_is_to_be_forgotten_alone(context):
    context.model.relabelled = lambda sample, draw: 'relabelled'
    forget, retain = (SimpleNamespace(metainfo=dict(view=x)) for x in ('forget', 'retain'))
    assert SalUn().prepare([retain, forget, retain], context) == [retain, 'relabelled', retain]


def test_what_the_baselines_are_if_nothing_is_said():
    """As each of them says it."""
    assert NegGradPlus().settings() == dict(beta=0.05, bound=15.0, dropout=True)
    assert SalUn().settings() == dict(saliency=0.5, alpha=1.0, dropout=True)
    assert SCRUB().settings() == dict(
        max_epochs=2, alpha=0.5, gamma=0.99, temperature=4.0, bound=15.0, dropout=True
    )


def test_scrub_leaves_out_what_earlier_tasks_forgot(context):
    """The original knows it, and would bring it back: by both kinds of epochs, of other classes."""
    gone, left_out = (3,), []
    moment = made_context(names=tuple('abcde'), forget=FORGET, old=gone)
    views = context.model.views()
    for view in views.values():
        view.now.divergence = lambda other, without, temperature: (
            left_out.append(without.tolist()) or torch.zeros(())
        )
    for moment.epoch, side in ((0, 'forget'), (1, 'retain')):
        SCRUB().losses({side: views[side]}, moment)
    assert left_out == [[3], [1, 2, 3]]


def test_ascent_stops_where_all_processes_together_are_at_the_bound(context, monkeypatch):
    """What is here 1 and in the other process 21, so 11 in the mean, goes up to 15 and no more."""

    def other_has_more(value, op):
        value.add_(value + 20).div_(2)

    monkeypatch.setattr('mmgslora.losses.over_processes.all_reduce', other_has_more)
    views = context.model.views()
    views['forget'].now.divergence = lambda other, without, temperature: torch.tensor(1.0)
    views['forget'].match = lambda: Matching(
        labels([1]), labels([0]), dict(loss_ce=torch.tensor(1.0))
    )
    for bound, left in ((15.0, 4.0), (10.0, 0.0)):
        ascent = NegGradPlus(beta=[0.1, 0.5], bound=bound)
        context.task = made_context(number=2).task
        assert ascent.losses(views, context)['forget_loss_ce'].item() == pytest.approx(0.5 * left)
        found = SCRUB(bound=bound).losses(dict(forget=views['forget']), context)
        assert found['forget_loss_divergence'].item() == pytest.approx(left)


def test_salun_deals_out_its_labels_over_the_processes(context, monkeypatch):
    """Two processes draw, in turn, what one draws for the images of both."""

    def drawn(rank, processes, images):
        monkeypatch.setattr('mmgslora.methods.salun.get_dist_info', lambda: (rank, processes))
        context.model.relabelled = lambda sample, draw: int(draw(labels([1])))
        context.generator.manual_seed(5)
        samples = [SimpleNamespace(metainfo=dict(view='forget'))] * images
        return SalUn().prepare(samples, context)

    one = drawn(0, 1, images=12)
    assert set(one) == set(RETAIN)
    assert drawn(0, 2, images=6) == one[::2] and drawn(1, 2, images=6) == one[1::2]
    assert one[::2] != one[1::2]


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_scrub(context, temperature):
    """Away from the teacher on all classes; back to it on those that stay."""
    model = context.model
    weight = model.weight.detach()
    method = SCRUB(alpha=2, gamma=0.5, temperature=temperature, bound=NO_BOUND)
    assert method.sides_of(context) == ('forget',)
    expected = reference.scrub_max_step(weight, model.teacher, model.forget[0], 1, temperature)
    torch.testing.assert_close(stepped(method, context, ('forget',)), expected)

    context.epoch = 1
    assert method.sides_of(context) == ('retain',)
    inputs, stay = model.retain[0], list(RETAIN)
    found = stepped(SCRUB(alpha=2, gamma=0, temperature=temperature), context, ('retain',))
    # Of what the teacher gives to the classes that stay, image by image.
    sure = reference.probabilities(model.teacher, inputs, temperature)[:, stay].sum(-1)
    student, wanted = (
        reference.probabilities(w[stay], inputs, temperature) for w in (weight, model.teacher)
    )
    gradient = torch.zeros_like(weight)
    apart = sure[:, None] * (student - wanted)
    gradient[stay] = 2 * temperature * apart.T @ inputs / sure.sum()
    torch.testing.assert_close(found, weight - gradient)
    kept = stepped(SCRUB(alpha=0, gamma=0.5), context, ('retain',))
    torch.testing.assert_close(
        kept, weight - 0.5 * reference.cross_entropy_gradient(weight, model.retain)
    )


def test_scrub_ends_a_task_with_keeping(context):
    method = SCRUB(max_epochs=2)
    method.check_epochs(4)
    sides = [method.sides_of(context) for context.epoch in range(4)]
    assert sides == [('forget',), ('retain',)] * 2
    with pytest.raises(ForgettingError, match='max_epochs is 2 and epochs_per_task is 3; .* 1 at'):
        method.check_epochs(3)
