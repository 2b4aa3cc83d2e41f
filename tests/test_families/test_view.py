"""What outputs know of themselves, against values worked out by hand."""

import math

import pytest
import torch

from mmgslora.families.view import Matching, Outputs, View, expected


def outputs(logits, boxes=None, kind='sigmoid'):
    logits = torch.as_tensor(logits, dtype=torch.float64)
    return Outputs(logits, torch.zeros(len(logits), 3), boxes, kind)


def gone(*labels):
    return torch.tensor(labels)


def test_probabilities_of_each_kind():
    logits = [[0.0, math.log(3), math.log(4)]]
    assert outputs(logits).log_probs.exp().tolist() == [[0.5, 0.75, pytest.approx(0.8)]]
    for kind, classes in (('softmax', 3), ('softmax_background', 2)):
        made = outputs(logits, kind=kind)
        torch.testing.assert_close(
            made.log_probs.exp(), torch.tensor([[1, 3, 4]], dtype=torch.float64) / 8
        )
        assert made.class_log_probs.shape == (1, classes)


def test_odds_of_a_set_of_classes():
    """1/8 and 3/8 against 4/8; "no object" is among what else can be said."""
    made = outputs([[0.0, math.log(3), math.log(4)]], kind='softmax_background')
    assert made.log_odds(gone(0, 1)).item() == pytest.approx(0)
    assert made.log_odds(gone(1)).item() == pytest.approx(math.log(3 / 5))


def test_rows_and_joints_take_layers_and_states_along():
    layer, state = outputs(torch.eye(3)), torch.arange(6.0).view(3, 2)
    whole = Outputs(layer.logits + 1, layer.embeddings, earlier=(layer,), states=(state,))
    part = whole[torch.tensor([2, 0])]
    assert part.states[0].tolist() == [[4, 5], [0, 1]]
    assert torch.equal(part.earlier[0].logits, torch.eye(3).double()[[2, 0]])
    both = Outputs.joined(part, whole[torch.tensor([1])])
    assert both.states[0].tolist() == [[4, 5], [0, 1], [2, 3]] and len(both.earlier) == 1


def test_half_precision_is_widened():
    made = Outputs(torch.zeros(1, 2, dtype=torch.float16), torch.zeros(1, 1), kind='sigmoid')
    assert made.log_probs.dtype == torch.float32


def test_divergence_of_sigmoids_by_hand():
    """One prediction, eight kept classes at 1/2, one of them moved to sigmoid(1)."""
    theirs = torch.zeros(1, 10)
    ours = theirs.clone()
    ours[:, 5], ours[:, :2] = 1.0, 9.0  # labels 0 and 1 do not count
    boxes = torch.zeros(1, 4, dtype=torch.float64)
    q = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)).item()
    apart = 0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q))
    # Boxes are 0.1 apart in each of 4 numbers, of which a smooth distance takes half of 0.001; the
    # other is sure to 1/2; 1 is the least divisor.
    found = outputs(ours, boxes + 0.1).divergence(outputs(theirs, boxes), gone(0, 1))
    assert found.item() == pytest.approx(apart + 5 * 4 * 0.0995 * 0.5)
    assert outputs(ours).divergence(outputs(theirs)).item() > apart + 1


def test_divergence_of_softmaxes_by_hand():
    """Two images; class 1 does not count."""
    ours = [[0.0, 9.0, 0.0, 0.0], [math.log(2), -4.0, 0.0, 0.0]]
    theirs = [[math.log(2), 0.0, 0.0, 0.0], [0.0, -99.0, 0.0, 0.0]]
    # Among 0, 2, 3: theirs (1/2, 1/4, 1/4) and (1/3, 1/3, 1/3); ours (1/3, 1/3, 1/3), (1/2, ...).
    first = 0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.25 * 3)
    second = (math.log((1 / 3) / 0.5) + 2 * math.log((1 / 3) / 0.25)) / 3
    others = (4 / 5, 1.0)  # what theirs gives to 0, 2 and 3
    expected = (others[0] * first + others[1] * second) / sum(others)
    now, before = outputs(ours, kind='softmax'), outputs(theirs, kind='softmax')
    assert now.divergence(before, gone(1)).item() == pytest.approx(expected)
    assert before.divergence(before, gone(1)).item() == pytest.approx(0, abs=1e-12)


def test_divergence_with_background_by_hand():
    """One prediction of two classes and background, the first class does not count."""
    before = outputs([[0.0, 0.0, 0.0]], kind='softmax_background')
    now = outputs([[7.0, math.log(3), 0.0]], kind='softmax_background')
    # (1/2, 1/2) and (3/4, 1/4); the other expects half an object, and 1 is the least divisor.
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert now.divergence(before, gone(0)).item() == pytest.approx(expected)


def test_divergence_with_background_is_per_object_that_the_other_expects():
    """Two predictions, of which the other is sure by 3/4 and by 11/12: 5/3 objects."""
    theirs = torch.tensor([[0.0, math.log(3), 0.0], [0.0, math.log(11), 0.0]])
    ours = torch.zeros(2, 3)
    kinds = dict(kind='softmax_background')
    found = outputs(ours, **kinds).divergence(outputs(theirs, **kinds), gone(0))
    apart = [p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)) for p in (3 / 4, 11 / 12)]
    assert found.item() == pytest.approx(sum(apart) * 3 / 5)


def test_the_joint_sum_of_what_is_expected_is_at_least_1(monkeypatch):
    """Of two processes their mean is therefore at least a half; sums go by column."""
    monkeypatch.setattr('mmgslora.families.view.get_world_size', lambda: 2)
    weights = torch.tensor([[0.25, 0.5, 2.0], [0.0, 0.25, 1.0]])
    assert expected(weights).tolist() == [0.5, 0.75, 3.0]


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax', 'softmax_background'])
def test_what_is_a_hair_above_rounding_is_a_difference(kind):
    """Of the first logit by 2e-4, and of another by 5e-5, which is none and does not pull."""
    before = outputs([[0.0, 0.0, 0.0]], kind=kind)
    logits = torch.tensor([[2e-4, 5e-5, 0.0]], dtype=torch.float64, requires_grad=True)
    now = Outputs(logits, torch.zeros(1, 3), kind=kind)
    now.divergence(before).backward()
    # At equal logits the slope is q - p: of a sigmoid d / 4; of three classes 2 d / 9.
    slope = 2e-4 / 4 if kind == 'sigmoid' else 2e-4 * 2 / 9
    assert logits.grad[0, 0].item() == pytest.approx(slope, rel=1e-3)
    assert logits.grad[0, 1] == 0


def test_rounding_is_no_difference():
    """Nor does it pull: scores not at all, boxes by a thousandth of what L1 would at any size."""
    boxes = torch.full((1, 4), 0.5)
    now = Outputs(torch.full((1, 2), 1e-6, requires_grad=True), torch.zeros(1, 1), kind='sigmoid')
    now.boxes = (boxes + 1e-6).requires_grad_()
    before = Outputs(torch.zeros(1, 2), torch.zeros(1, 1), boxes, 'sigmoid')
    apart = now.divergence(before)
    assert apart.item() == pytest.approx(0, abs=1e-7)
    apart.backward()
    torch.testing.assert_close(
        now.boxes.grad, torch.full((1, 4), 5 * 0.5 * 1e-3), rtol=0.05, atol=0
    )
    assert now.logits.grad is None or not now.logits.grad.any()


def test_small_sums_are_not_what_large_ones_leave():
    """A thousand predictions, one of which moved a little: float32 sums of all would lose it."""
    theirs = torch.full((1000, 80), -3.0)
    ours = theirs.clone()
    ours[0, 0] += 2e-2
    now, before = (Outputs(x, torch.zeros(1000, 1), kind='sigmoid') for x in (ours, theirs))
    p = 1 / (1 + math.exp(3))  # and to second order the divergence is p (1 - p) d^2 / 2
    expected = p * (1 - p) * 2e-2**2 / 2 / (1000 * p)
    assert now.divergence(before).item() == pytest.approx(expected, rel=0.02)


def test_temperature_softens_both():
    """Logits 2 and 0 at temperature 2 are 1 and 0, and the square of 2 is taken back."""
    now, before = (outputs(x, kind='softmax') for x in ([[2.0, 0.0]], [[0.0, 0.0]]))
    p = 1 / (1 + math.e)
    expected = 4 * (0.5 * math.log(0.5 / (1 - p)) + 0.5 * math.log(0.5 / p))
    assert now.divergence(before, temperature=2).item() == pytest.approx(expected)


def test_the_other_gets_no_gradient():
    before = Outputs(torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 1))
    now = Outputs(torch.ones(1, 2, requires_grad=True), torch.zeros(1, 1))
    now.divergence(before).backward()
    assert before.logits.grad is None and now.logits.grad is not None


def test_truth_is_matched_once_and_only_if_asked_for():
    asked = []

    def match():
        asked.append(1)
        terms = dict(loss_cls=torch.tensor(1.0), loss_bbox=torch.tensor(0.5))
        return Matching(torch.tensor([2]), torch.tensor([0]), terms)

    view = View('retain', outputs([[0.0, 0.0, 1.0]]), match)
    assert view.now.log_probs.shape == (1, 3) and not asked
    assert view.loss.item() == 1.5 and view.labels.tolist() == [2] and asked == [1]


def test_rows_and_joined():
    boxes = torch.arange(8.0).reshape(2, 4)
    both = outputs([[0.0, 1.0], [2.0, 3.0]], boxes)
    again = Outputs.joined(both[torch.tensor([0])], both[torch.tensor([1])])
    assert torch.equal(again.logits, both.logits) and torch.equal(again.boxes, boxes)
    assert again.kind == 'sigmoid'
