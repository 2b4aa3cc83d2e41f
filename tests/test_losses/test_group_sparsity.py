import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup, discover_groups, inject_lora
from mmgslora.losses import group_penalty, proximal_step, zero_ratio


def group(a, b, dtype=torch.float32, name='g'):
    def matrices(values):
        return [nn.Parameter(torch.tensor(value, dtype=dtype)) for value in values]

    return LoRAGroup(name, matrices(a), matrices(b))


def stacked(matrices):
    return np.concatenate([matrix.detach().double().numpy().ravel() for matrix in matrices])


# ------------------------------------------------------------------------------- penalty


def test_penalty_worked_by_hand():
    groups = [group([[[1.0, 2.0]]], [[[4.0], [2.0]]]), group([[[0.0, 3.0]]], [[[4.0]]])]
    assert group_penalty(groups).item() == 10.0  # 5 + 5


def test_gradient_is_the_unit_vector_of_the_group():
    g = group([[[1.0, 2.0]]], [[[4.0], [2.0]]])
    group_penalty([g]).backward()
    torch.testing.assert_close(g.A[0].grad, torch.tensor([[0.2, 0.4]]))
    torch.testing.assert_close(g.B[0].grad, torch.tensor([[0.8], [0.4]]))


def test_gradient_at_a_zero_group_is_zero():
    zero, other = group([np.zeros((2, 3))], [np.zeros((4, 2))]), group([[[3.0]]], [[[4.0]]])
    group_penalty([zero, other]).backward()
    assert torch.equal(zero.A[0].grad, torch.zeros(2, 3))
    assert torch.equal(zero.B[0].grad, torch.zeros(4, 2))
    assert other.A[0].grad.item() == pytest.approx(0.6)


def test_without_eps_a_zero_group_gives_nan():
    # Why eps is there: the reference code's penalty.
    zero = group([np.zeros((2, 3))], [np.zeros((4, 2))])
    zero.norm().backward()
    assert zero.A[0].grad.isnan().all()


def test_penalty_matches_finite_differences():
    g = group([np.random.default_rng(0).normal(size=(2, 3))], [np.ones((4, 2))], torch.float64)
    matrices = [*g.A, *g.B]
    assert torch.autograd.gradcheck(
        lambda *m: group_penalty([LoRAGroup('g', [m[0]], [m[1]])]), matrices
    )


# -------------------------------------------------------------------------- proximal step


def test_proximal_step_worked_by_hand():
    g = group([[[9.0]]], [[[3.0, 0.0]], [[0.0, 4.0]]])
    proximal_step([g], [1.0])  # joint norm 5, factor 4/5
    torch.testing.assert_close(g.B[0].detach(), torch.tensor([[2.4, 0.0]]))
    torch.testing.assert_close(g.B[1].detach(), torch.tensor([[0.0, 3.2]]))
    assert g.A[0].item() == 9.0
    assert g.B[0].requires_grad


def test_each_group_has_a_threshold_of_its_own():
    groups = [group([], [[[3.0]], [[4.0]]]), group([[[1.0]]], []), group([], [[[6.0, 8.0]]])]
    proximal_step(groups, [2.5, 1.0, 1.0])  # factors 1/2 and, of a norm of 10, 9/10
    torch.testing.assert_close(groups[0].B[0].detach(), torch.tensor([[1.5]]))
    torch.testing.assert_close(groups[0].B[1].detach(), torch.tensor([[2.0]]))
    torch.testing.assert_close(groups[2].B[0].detach(), torch.tensor([[5.4, 7.2]]))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    st.floats(0, 6),
)
def test_proximal_step_minimises_its_objective(seed, shapes, threshold):
    rng = np.random.default_rng(seed)
    start = [rng.normal(size=shape) for shape in shapes]
    g = group([], start, torch.float64)
    proximal_step([g], [threshold])
    b0, b = np.concatenate([s.ravel() for s in start]), stacked(g.B)

    def objective(x):
        return 0.5 * np.sum((x - b0) ** 2) + threshold * np.linalg.norm(x)

    # The optimality conditions: b0 - b is threshold times a subgradient of the norm at b.
    if np.linalg.norm(b0) <= threshold:
        assert not b.any()
    else:
        np.testing.assert_allclose(b0 - b, threshold * b / np.linalg.norm(b), atol=1e-10)
    for _ in range(20):
        other = b + rng.normal(size=b.shape) * rng.choice([1e-3, 0.1, 1.0])
        assert objective(b) <= objective(other) + 1e-12


def test_proximal_step_agrees_with_numeric_minimisation():
    b0 = torch.tensor([[1.0, -2.0], [0.5, 2.5]], dtype=torch.float64)
    g = group([], [b0], torch.float64)
    proximal_step([g], [0.7])
    x = b0.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        value = 0.5 * (x - b0).square().sum() + 0.7 * x.norm()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(g.B[0].detach(), x.detach(), rtol=0, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 6), st.floats(0.001, 10))
def test_proximal_step_is_non_expansive(seed, threshold, spread):
    rng = np.random.default_rng(seed)
    x, y = spread * rng.normal(size=(2, 3, 2))
    gx, gy = group([], [x], torch.float64), group([], [y], torch.float64)
    proximal_step([gx, gy], [threshold, threshold])
    after = np.linalg.norm(stacked(gx.B) - stacked(gy.B))
    assert after <= np.linalg.norm(x - y) * (1 + 1e-12)


@given(st.floats(0, 1e6), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=20, deadline=None)
def test_zero_stays_zero(threshold, dtype):
    g = group([np.ones((2, 3))], [np.zeros((4, 2))], dtype)
    proximal_step([g], [threshold])
    assert torch.equal(g.B[0], torch.zeros(4, 2, dtype=dtype))


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
@settings(max_examples=40, deadline=None)
def test_a_norm_exactly_at_the_threshold_gives_exactly_zero(seed, dtype):
    g = group([], [np.random.default_rng(seed).normal(size=(3, 2))], dtype)
    proximal_step([g], [g.norm_B().item()])
    assert not g.B[0].any()


def test_threshold_zero_changes_nothing():
    g = group([], [np.random.default_rng(0).normal(size=(5, 4))])
    before = g.B[0].detach().clone()
    proximal_step([g], [0.0])
    assert torch.equal(g.B[0], before)


def test_bfloat16_norms_are_taken_in_float32():
    # Sixteen squares of 1 and one of 16: bfloat16 would sum 256 + 16 and lose digits.
    values = np.array([[16.0] + [1.0] * 16])
    g = group([], [values], torch.bfloat16)
    proximal_step([g], [4.0])
    expected = values * (1 - 4 / math.sqrt(272))
    assert torch.equal(g.B[0], torch.tensor(expected, dtype=torch.bfloat16))


def test_the_norms_of_several_matrices_are_sums_of_one_order():
    """On a GPU what index_add and scatter_add sum comes in any order, in each process another."""
    called = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func.name())
            return func(*args, **(kwargs or {}))

    groups = [group([], [[[2.0]], [[4.0]], [[4.0]]]), group([], [[[3.0]]]), group([[[1.0]]], [])]
    with Names():
        proximal_step(groups, [3.0, 6.0, 1.0])  # norms 6 and 3: a half is left, and nothing
    assert [b.item() for b in groups[0].B] == [1.0, 2.0, 2.0] and groups[1].B[0].item() == 0
    assert called and not [name for name in called if 'index_add' in name or 'scatter' in name]


def test_groups_are_shrunk_each_by_its_own_norm_and_those_without_b_are_left():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    inject_lora(model, rank=2, target='.*')
    nn.init.constant_(model[0].lora_B, 1.0)
    nn.init.constant_(model[1].lora_B, 0.1)
    a = [model[i].lora_A.detach().clone() for i in range(2)]
    proximal_step(discover_groups(model, 'matrix'), 4 * [0.5])
    # Norms sqrt(6) and 0.1 sqrt(6) = 0.245 < 0.5.
    torch.testing.assert_close(model[0].lora_B.detach(), torch.full((3, 2), 1 - 0.5 / math.sqrt(6)))
    assert not model[1].lora_B.any()
    assert all(torch.equal(model[i].lora_A, a[i]) for i in range(2))


@pytest.mark.parametrize('threshold', [-0.1, math.nan])
def test_a_threshold_that_is_not_possible(threshold):
    with pytest.raises(ForgettingError, match='must be 0 or more'):
        proximal_step([group([], [[[1.0]]])], [threshold])


def test_the_step_switches_groups_off_in_training():
    # Two groups, one of them useful: soft-thresholding keeps it and zeroes the other.
    torch.manual_seed(0)
    model = nn.ModuleDict({'useful': nn.Linear(4, 4), 'idle': nn.Linear(4, 4)})
    inject_lora(model, rank=2, lora_alpha=2, target='.*')
    groups = discover_groups(model, 'module')
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = torch.randn(64, 4)
    goal = model['useful'](x).detach() + x @ torch.randn(4, 1) @ torch.ones(1, 4)
    idle = model['idle'](x).detach()
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model['useful'](x) - goal).square().mean()
        loss = loss + (model['idle'](x) - idle - 0.01).square().mean()
        loss.backward()
        optimizer.step()
        proximal_step(groups, 2 * [0.1 * 0.05])
    assert zero_ratio(groups) == 0.5
    assert not model['idle'].lora_B.any()
    assert model['idle'].lora_A.any()


# ----------------------------------------------------------------------------- zero_ratio


def test_zero_ratio_has_no_tolerance():
    zero, tiny = group([[[1.0]]], [[[0.0]], [[0.0]]]), group([], [[[0.0]], [[1e-30]]])
    only_a = group([[[0.0]]], [])
    assert zero_ratio([zero, tiny, only_a]) == 0.5
    assert zero_ratio([zero]) == 1.0
    assert zero_ratio([tiny]) == 0.0
    with pytest.raises(ForgettingError, match='at least one group'):
        zero_ratio([only_a])
