"""Losses of UNDO against values worked out by hand, and how its noise is said."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.families.view import Matching, Outputs, View
from mmgslora.methods import UNDO

from .views import context, labels

GONE, EMPTY = 1, -20.0


def outputs(log_probs, boxes, embeddings):
    log_probs = torch.tensor(log_probs, dtype=torch.float64)
    logits = log_probs - (-log_probs.expm1()).log()
    boxes, embeddings = (torch.tensor(x, dtype=torch.float64) for x in (boxes, embeddings))
    return Outputs(logits, embeddings, boxes, kind='sigmoid')


def sides(now, teacher, matched=(0,), images=1):
    views = {}
    for side in ('forget', 'retain'):
        found = Matching(labels([GONE] * len(matched)), labels(matched), {})
        views[side] = View(side, now, lambda found=found: found, {'teacher': teacher}, images)
    return views


def test_by_hand():
    """A forgotten object under predictions 0 (matched) and 1 (IoU 0.5); 2 is empty."""
    whole, half, away = [0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 1], [0.1, 0.1, 0.1, 0.1]
    states = [[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    now = outputs([[EMPTY, -4.0], [EMPTY, -9.0], [EMPTY, -8.0]], [whole, half, away], states)
    teacher = outputs([[EMPTY, -7.0], [EMPTY, -7.0], [EMPTY, -6.0]], [whole, half, away], states)
    method = UNDO('x.pth', suppress_weight=2.0, confusion_weight=0.0, ramp=0.4)
    losses = method.losses(
        sides(now, teacher), context(names='ab', forget=(GONE,), step=1, steps=5)
    )
    # Nothing is at prediction 2 alone, so the level is -6: 0 must come down from -4 to -9.
    assert losses['forget_loss_suppress'].item() == pytest.approx(2 * 5 / 2, rel=1e-6)
    assert losses['loss_background'].item() == pytest.approx(0.2 * 2**2, rel=1e-6)
    assert losses['forget_loss_distill'].item() == pytest.approx(0, abs=1e-6)  # the gone class
    assert 'forget_loss_confusion' not in losses and method.parts == []


def test_a_class_that_was_sealed_before_has_no_part_in_the_level():
    """The last class has the logit of a sealed one; the level of the other stays -6."""
    sealed, box, state = -1e4, [[0.5, 0.5, 1, 1], [0.1, 0.1, 0.1, 0.1]], [[0.0, 0.0]] * 2
    now = outputs([[EMPTY, -4.0, sealed], [EMPTY, -8.0, sealed]], box, state)
    teacher = outputs([[EMPTY, -7.0, sealed], [EMPTY, -6.0, sealed]], box, state)
    method = UNDO('x.pth', confusion_weight=0.0)
    moment = context(names='abc', forget=(GONE,), old=(2,))
    losses = method.losses(sides(now, teacher), moment)
    assert losses['forget_loss_suppress'].item() == pytest.approx(5, rel=1e-6)
    assert losses['loss_background'].item() == pytest.approx(0.2 * 2**2, rel=1e-6)


def test_a_class_that_only_another_process_scores_is_not_taken_for_a_sealed_one(monkeypatch):
    """Class c has a score of exactly 0 here; it counts in the level as class b does."""
    monkeypatch.setattr(
        'mmgslora.methods.undo.mean_over_processes',
        lambda scored: (scored + torch.ones(2)) / 2,
    )
    box, state = [[0.5, 0.5, 1, 1], [0.1, 0.1, 0.1, 0.1]], [[0.0, 0.0]] * 2
    now = outputs([[EMPTY, -402.0, -405.0], [EMPTY, -404.0, -404.0]], box, state)
    teacher = outputs([[EMPTY, -1.0, -799.0], [EMPTY, -1.0, -799.0]], box, state)
    method = UNDO('x.pth', confusion_weight=0.0)
    losses = method.losses(sides(now, teacher), context(names='abc', forget=(GONE, 2)))
    # The level is -400, the mean of both, and they must be 3 nats below: b is one nat short.
    assert losses['forget_loss_suppress'].item() == pytest.approx((1 + 0) / 2, rel=1e-6)
    assert losses['loss_background'].item() == pytest.approx(0.2 * 4**2, rel=1e-6)


def test_what_the_teacher_is_sure_of_is_neither_forgotten_nor_nothing():
    """0 and 1 are on the object, 2 and 3 are not; of 1 and 3 the teacher says class a, half sure.

    Of class c, which went earlier, it is sure at 0 and 2: that is nothing that stays.
    """
    box, away, half = [0.5, 0.5, 1, 1], [0.1, 0.1, 0.1, 0.1], math.log(0.5)
    states, low = [[0.0, 0.0]] * 4, -6.0
    says = [[EMPTY, low, low], [half, low, low], [EMPTY, -8.0, -8.0], [half, -5.0, -5.0]]
    now = [[EMPTY, -4.0, -4.0], [half, -10.0, -10.0], [EMPTY, -6.0, -6.0], [half, -9.0, -9.0]]
    boxes = [box, box, away, away]
    now, teacher = outputs(now, boxes, states), outputs(says, boxes, states)
    sure = teacher.logits.clone()
    sure[[0, 2], 2] = 0.0  # p is 1/2
    method = UNDO('x.pth', confusion_weight=0.0, margin=2.0, background_weight=1.0)
    moment = context(names='abc', forget=(GONE,), old=(2,))
    losses = method.losses(sides(now, teacher, matched=(0, 1)), moment)
    # Where nothing is: 2 counts once and 3 by a half, so the level is (8 + 5 / 2) / 1.5 below 0.
    level = -(8 + 5 / 2) / 1.5
    hinge = (1 * (-4 - level + 2) + 0.5 * max(0, -10 - level + 2)) / 1.5
    assert losses['forget_loss_suppress'].item() == pytest.approx(hinge, rel=1e-5)
    rest = ((-6 - level) ** 2 + 0.5 * (-9 - level) ** 2) / 1.5
    assert losses['loss_background'].item() == pytest.approx(rest, rel=1e-5)
    teacher = Outputs(sure, teacher.embeddings, teacher.boxes, 'sigmoid')
    again = method.losses(sides(now, teacher, matched=(0, 1)), moment)
    # The level is now the mean of both classes', at 2 that of -8 and log 1/2.
    level = -((8 - half) / 2 + 5 / 2) / 1.5
    rest = ((-6 - level) ** 2 + 0.5 * (-9 - level) ** 2) / 1.5
    assert again['loss_background'].item() == pytest.approx(rest, rel=1e-5)
    assert again['forget_loss_distill'].item() == pytest.approx(0, abs=1e-6)  # b and c are gone


@pytest.mark.parametrize(('images', 'suppress'), [(1, 0.0), (2, 3.0)])
def test_a_box_in_another_image_is_not_on_the_object(images, suppress):
    """Of one image both are on it, and with nothing empty there is no level, 0; of two one is."""
    box, state = [0.5, 0.5, 1, 1], [0.0, 0.0]
    now = outputs([[EMPTY, -4.0], [EMPTY, -4.0]], [box, box], [state, state])
    method = UNDO('x.pth', confusion_weight=0.0)
    losses = method.losses(sides(now, now, images=images), context(names='ab', forget=(GONE,)))
    assert losses['forget_loss_suppress'].item() == pytest.approx(suppress, abs=1e-6)


def test_a_classifier_asks_the_teacher_of_the_retain_view_alone():
    logits = torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64)
    now = Outputs(logits, torch.zeros(1, 2), kind='softmax')
    method = UNDO('x.pth', bound=9.0, confusion_weight=0.0)
    losses = method.losses(sides(now, now), context(forget=(GONE,)))
    assert losses.keys() == {'retain_loss_distill', 'forget_loss_suppress'}
    odds = 3 - math.log(2)
    assert losses['forget_loss_suppress'].item() == pytest.approx(9 + odds)


def test_every_layer_learns_from_the_last_of_the_teacher():
    states = [[0.0, 0.0]]
    sure = outputs([[-0.1, EMPTY]], [[0.5, 0.5, 1, 1]], states)
    unsure = outputs([[-2.0, EMPTY]], [[0.5, 0.5, 1, 1]], states)
    method = UNDO('x.pth', suppress_weight=0.0, confusion_weight=0.0)
    now = Outputs(sure.logits, sure.embeddings, sure.boxes, 'sigmoid', (unsure,))
    apart = method.losses(sides(now, sure), context(names='ab', forget=(GONE,)))
    wanted = unsure.divergence(sure, without=labels([GONE])) / 2
    assert apart['retain_loss_distill'].item() == pytest.approx(wanted.item()) and wanted > 0


def test_the_reader_sees_every_block_and_layer(monkeypatch):
    """A detector's layers have heads, a classifier's blocks do not; matched rows alone count."""
    box = [[0.5, 0.5, 1, 1]] * 2
    layer = outputs([[EMPTY, -4.0]] * 2, box, [[1.0, 2.0], [3.0, 4.0]])
    block = torch.tensor([[5.0, 6.0, 7.0], [8.0, 9.0, 0.0]], dtype=torch.float64)
    now = Outputs(layer.logits, layer.embeddings + 1, layer.boxes, 'sigmoid', (layer,), (block,))
    method, seen = UNDO('x.pth', confusion_weight=0.5, ramp=0.0), []
    monkeypatch.setattr(
        method._confusion, 'loss', lambda *given: (seen.extend(given), torch.ones(()))[1]
    )
    found = method.losses(sides(now, now, matched=(1,)), context(names='ab', forget=(GONE,)))
    assert found['forget_loss_confusion'] == 0.5
    (first, second, last), classes, count, others = seen
    assert (
        first.tolist() == [[8, 9, 0]] and second.tolist() == [[3, 4]] and last.tolist() == [[4, 5]]
    )
    assert classes.tolist() == [0] and count == 1
    # The teacher, the model itself here, is sure of nothing that stays.
    assert [x.shape for x in others] == [(0, 3), (0, 2), (0, 2)]


def test_the_reader_comes_in_over_the_first_part_of_a_task(monkeypatch):
    """At steps 0, 1, 2 and 3 of 10, in the first fifth: nothing, a half, all."""
    now = outputs([[EMPTY, -4.0]], [[0.5, 0.5, 1, 1]], [[0.0, 0.0]])
    method, found = UNDO('x.pth', confusion_weight=0.4, ramp=0.2), []
    monkeypatch.setattr(method._confusion, 'loss', lambda *given: torch.tensor(3.0))
    for step in range(4):
        moment = context(names='ab', forget=(GONE,), step=step, steps=10)
        found.append(method.losses(sides(now, now), moment)['forget_loss_confusion'].item())
    assert found == pytest.approx([0.0, 0.6, 1.2, 1.2])


def test_the_reader_is_told_classes_by_their_place_in_the_request(monkeypatch):
    """Objects of classes c, b, c of a request for b and c: 1, 0 and 1 of two."""
    now = outputs([[EMPTY] * 3] * 3, [[0.5, 0.5, 1, 1]] * 3, [[0.0, 0.0]] * 3)
    views = sides(now, now, matched=(0, 1, 2))
    found = Matching(labels([2, 1, 2]), labels([0, 1, 2]), {})
    views['forget'].match = lambda: found
    method, seen = UNDO('x.pth', ramp=0.0), []
    monkeypatch.setattr(
        method._confusion, 'loss', lambda *given: (seen.extend(given), torch.ones(()))[1]
    )
    losses = method.losses(views, context(names='abc', forget=(1, 2)))
    assert seen[1].tolist() == [1, 0, 1] and seen[2] == 2
    assert losses['forget_loss_confusion'].item() == pytest.approx(0.3)  # the weight by default


def test_one_class_is_confused_with_what_the_teacher_is_sure_stays(monkeypatch):
    box = [[0.5, 0.5, 1, 1]] * 3
    now = outputs([[EMPTY] * 3] * 3, box, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    # It says the class that is gone, nothing, and the last class.
    says = [[EMPTY, -0.1, EMPTY], [EMPTY, EMPTY, -0.8], [EMPTY, EMPTY, -0.6]]
    sure = outputs(says, box, [[0.0, 0.0]] * 3)
    method, seen = UNDO('x.pth', confusion_weight=0.5, ramp=0.0), []
    monkeypatch.setattr(
        method._confusion, 'loss', lambda *given: (seen.append(given), torch.ones(()))[1]
    )
    for forget in ((GONE,), (0, GONE)):
        method.losses(sides(now, sure, matched=(0,)), context(names='abc', forget=forget))
    (*_, one), (*_, two) = seen
    assert [x.tolist() for x in one] == [[[5, 6]]] and two == []


def test_shares_of_noise():
    learned = {'decoder.layers.0.w': 0, 'decoder.norm.w': 0, 'decoder2.w': 0, 'head.w': 0}
    method = UNDO('x.pth', noise={'decoder': 0.5, 'decoder.layers.0': 0.2})
    assert method._shares(learned) == {'decoder.layers.0.w': 0.2, 'decoder.norm.w': 0.5}
    assert set(UNDO('x.pth', noise=0.1)._shares(learned).values()) == {0.1}
    with pytest.raises(ForgettingError, match="'neck', where nothing is trained; .*decoder, "):
        UNDO('x.pth', noise=dict(neck=0.1))._shares(learned)
    with pytest.raises(ForgettingError, match='noise is 2'):
        UNDO('x.pth', noise=2)


def test_a_sealed_teacher_is_refused(tmp_path):
    """The model would begin with its head, which cannot name the classes: no training is needed."""
    path, plain = tmp_path / 'sealed.pth', nn.Linear(2, 2)
    torch.save(dict(state_dict=plain.state_dict(), meta=dict(sealed=['cat', 'dog'])), path)
    model = SimpleNamespace(plain_model=plain, load_state_dict=plain.load_state_dict)
    with pytest.raises(ForgettingError, match=r'is sealed \(cat, dog\)'):
        UNDO(str(path)).check_files(model, 1)


def test_defaults():
    assert UNDO('x.pth').settings() == dict(
        teacher='x.pth',
        noise=0.5,
        suppress_weight=1.0,
        margin=3.0,
        bound=9.0,
        background_weight=0.2,
        confusion_weight=0.3,
        ramp=0.3,
    )


def test_name_of_the_teacher():
    assert UNDO('m/task_{task:02d}.pth').files(2) == ['m/task_01.pth', 'm/task_02.pth']
    with pytest.raises(ForgettingError, match='in braces there can be {task} alone'):
        UNDO('m/{epoch}.pth').files(1)
