"""Logits against the papers' formulas, worked out in plain Python in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmgslora.errors import ForgettingError
from mmgslora.models.heads import CosineMarginHead, LinearHead


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))


def cosface(theta, margin):
    return math.cos(theta) - margin


def arcface(theta, margin):
    if theta + margin <= math.pi:
        return math.cos(theta + margin)
    return math.cos(theta) - margin * math.sin(margin)


MARGINS = {'cosface': (cosface, 0.35), 'arcface': (arcface, 0.5)}


@pytest.fixture
def embeddings():
    return torch.randn(6, 3, dtype=torch.float64)


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])


@pytest.mark.parametrize('margin_type', MARGINS)
@pytest.mark.parametrize('scale, margin', [(None, None), (10.0, 0.2), (64.0, 0.0)])
def test_margin_head_by_hand(embeddings, margin_type, scale, margin):
    given = {} if scale is None else dict(scale=scale, margin=margin)
    head = CosineMarginHead(3, 4, margin_type, **given).double()
    lower, default = MARGINS[margin_type]
    scale = scale or 64.0
    margin = default if margin is None else margin
    # One of an angle so wide that ArcFace's margin reaches beyond 180 degrees.
    axis = head.weight[LABELS[4]].detach()
    embeddings[4] = -axis + 0.1 * axis.norm() * torch.tensor([0.0, 0.6, 0.8])
    angles = [[math.acos(cosine(e, w)) for w in head.weight] for e in embeddings]
    assert margin_type == 'cosface' or margin == 0 or angles[4][LABELS[4]] + margin > math.pi

    plain = [[scale * math.cos(angle) for angle in row] for row in angles]
    torch.testing.assert_close(
        head(embeddings), torch.tensor(plain, dtype=torch.float64), atol=1e-10, rtol=0
    )
    for row, label in enumerate(LABELS.tolist()):
        plain[row][label] = scale * lower(angles[row][label], margin)
    found = head.training_logits(embeddings, LABELS)
    torch.testing.assert_close(found, torch.tensor(plain, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize('margin_type', MARGINS)
def test_lengths_do_not_count(embeddings, margin_type):
    head = CosineMarginHead(3, 4, margin_type).double()
    before = head(embeddings)
    with torch.no_grad():
        head.weight *= torch.tensor([[0.1], [1.0], [3.0], [20.0]])
    torch.testing.assert_close(head(7 * embeddings), before)


@pytest.mark.parametrize('margin_type', MARGINS)
@pytest.mark.parametrize('side', [1, -1])
def test_gradient_is_finite_on_and_opposite_the_weight(margin_type, side):
    head = CosineMarginHead(4, 4, margin_type)
    head.weight.data = torch.eye(4)  # cosines of exactly 1, 0 and -1
    embeddings = (side * torch.eye(4)[LABELS]).requires_grad_()
    F.cross_entropy(head.training_logits(embeddings, LABELS), LABELS).backward()
    assert embeddings.grad.isfinite().all() and head.weight.grad.isfinite().all()
    assert head.weight.grad.abs().sum() > 0


def test_half_precision_keeps_gradients_finite():
    head = CosineMarginHead(4, 4, 'arcface')
    head.weight.data = torch.eye(4)
    embeddings = torch.eye(4)[LABELS].requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        logits = head.training_logits(embeddings, LABELS)
    assert logits.dtype == torch.float32
    F.cross_entropy(logits, LABELS).backward()
    assert embeddings.grad.isfinite().all()


def test_margin_head_has_one_parameter():
    head = CosineMarginHead(5, 7, 'arcface')
    assert {name: tuple(p.shape) for name, p in head.state_dict().items()} == {'weight': (7, 5)}
    assert (head.embed_dims, head.num_classes) == (5, 7)
    # Xavier-uniform: bound sqrt(6 / (5 + 7)).
    wide = CosineMarginHead(500, 700).weight
    bound = math.sqrt(6 / 1200)
    assert wide.abs().max() <= bound and wide.std().item() == pytest.approx(
        bound / 3**0.5, rel=0.01
    )


def test_unknown_margin():
    with pytest.raises(ForgettingError, match="margin_type is 'sface'; allowed are 'cosface'"):
        CosineMarginHead(3, 4, 'sface')


def test_linear_head_by_hand():
    head = LinearHead(2, 3)
    assert not head.bias.any()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]]))
        head.bias.copy_(torch.tensor([0.0, 10.0, -1.0]))
    embeddings = torch.tensor([[2.0, 4.0], [-1.0, 0.0]])
    by_hand = torch.tensor([[10.0, 6.0, 7.0], [-1.0, 10.0, -4.0]])
    assert torch.equal(head(embeddings), by_hand)
    assert torch.equal(head.training_logits(embeddings, torch.tensor([0, 1])), by_hand)
    assert (head.embed_dims, head.num_classes) == (2, 3)
