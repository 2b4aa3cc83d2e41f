"""The reference steps against numbers worked out on paper, and against autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from . import reference_steps as reference

ZERO = torch.zeros(2, 1, dtype=torch.float64)
# The first weight says class 0 with p = 3/4 for the input 1.
SURE = torch.tensor([[math.log(3)], [0]], dtype=torch.float64)
RETAIN = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([0])
FORGET = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([1])


def column(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1)


def test_neg_grad_plus_by_hand():
    """Where p is 1/2, the gradients are (-1/2, 1/2) for retain and (1, -1) for forget."""
    stepped = reference.neg_grad_plus_step(ZERO, FORGET, RETAIN, alpha=0.75, lr=1)
    # 3/4 (-1/2, 1/2) - 1/4 (1, -1) = (-5/8, 5/8)
    torch.testing.assert_close(stepped, column(0.625, -0.625))


def test_salun_by_hand():
    """Two inputs: the gradient is (p - y) times each; the greater half is salient."""
    weight = torch.zeros(2, 2, dtype=torch.float64)
    forget = torch.tensor([[4.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    mask = reference.salun_mask(weight, forget)  # of (-2, -1/2), (2, 1/2)
    assert mask.tolist() == [[True, False], [True, False]]
    other = forget[0], torch.tensor([1])
    retain = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    stepped = reference.salun_step(weight, mask, other, retain, retain_weight=2, lr=0.1)
    # First input: (2, -2) + 2 (-1/2, 1/2) = (1, -1); second: masked.
    expected = torch.tensor([[-0.1, 0], [0.1, 0]], dtype=torch.float64)
    torch.testing.assert_close(stepped, expected)


def test_scrub_by_hand():
    """The teacher says (1/2, 1/2), the student (3/4, 1/4): away is further up for class 0."""
    inputs = RETAIN[0]
    away = reference.scrub_max_step(SURE, ZERO, inputs, lr=1)
    torch.testing.assert_close(away, SURE + column(0.25, -0.25))
    back = reference.scrub_min_step(SURE, ZERO, RETAIN, alpha=2, gamma=1, lr=1)
    # 2 (1/4, -1/4) + (3/4 - 1, 1/4) = (1/4, -1/4)
    torch.testing.assert_close(back, SURE - column(0.25, -0.25))


def test_nothing_happens_where_student_is_teacher():
    """SCRUB's first phase has no gradient at its own start."""
    assert torch.equal(reference.scrub_max_step(SURE, SURE, FORGET[0], lr=1), SURE)


@pytest.fixture
def random_case():
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    labels = torch.randint(5, (7,), generator=generator)
    return normal(5, 3).requires_grad_(), normal(5, 3), normal(7, 3), labels


def test_cross_entropy_gradient_is_autograds(random_case):
    weight, _, inputs, labels = random_case
    (gradient,) = torch.autograd.grad(F.cross_entropy(inputs @ weight.T, labels), weight)
    found = reference.cross_entropy_gradient(weight.detach(), (inputs, labels))
    torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_divergence_gradient_is_autograds(random_case, temperature):
    weight, teacher, inputs, _ = random_case
    student = (inputs @ weight.T / temperature).log_softmax(-1)
    wanted = (inputs @ teacher.T / temperature).softmax(-1)
    loss = temperature**2 * F.kl_div(student, wanted, reduction='batchmean')
    (gradient,) = torch.autograd.grad(loss, weight)
    found = reference.divergence_gradient(weight.detach(), teacher, inputs, temperature)
    torch.testing.assert_close(found, gradient)
