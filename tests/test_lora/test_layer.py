import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRALinear
from mmgslora.lora.adapter import merged_weight


def trained(in_features=6, out_features=5, rank=3, alpha=2.0, bias=True, seed=0, **kwargs):
    """A layer whose adapter is not at its start."""
    torch.manual_seed(seed)
    layer = LoRALinear(in_features, out_features, bias, rank, alpha, **kwargs)
    nn.init.normal_(layer.lora_B)
    return layer


def dense_output(layer, x):
    """The layer as one matrix, in float64."""
    weight = layer.weight.double() + layer.lora_alpha / layer.rank * (
        layer.lora_B.double() @ layer.lora_A.double()
    )
    return F.linear(x.double(), weight, None if layer.bias is None else layer.bias.double())


def test_output_worked_by_hand():
    layer = LoRALinear(2, 2, rank=1, lora_alpha=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
        layer.lora_A.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B.copy_(torch.tensor([[4.0], [-2.0]]))
    # W x + b = (13, 25); A x = 13; B A x = (52, -26); halved (26, -13).
    assert torch.equal(layer(torch.tensor([3.0, 5.0])), torch.tensor([39.0, 12.0]))
    assert torch.equal(layer.delta(), torch.tensor([[2.0, 4.0], [-1.0, -2.0]]))
    layer.enabled = False
    assert torch.equal(layer(torch.tensor([3.0, 5.0])), torch.tensor([13.0, 25.0]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_the_dense_layer(data):
    n_in, n_out = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    rank = data.draw(st.integers(1, min(n_in, n_out)))
    alpha = data.draw(st.floats(0.01, 100))
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    layer = trained(n_in, n_out, rank, alpha, data.draw(st.booleans()), dtype=torch.float64)
    x = torch.randn(*shape, n_in, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense_output(layer, x))

    layer.merge()
    with torch.no_grad():
        assert not layer.lora_B.any()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_fresh_adapter_changes_nothing_and_has_the_kaiming_bound():
    linear = nn.Linear(400, 300)
    layer = LoRALinear.from_linear(linear, rank=200)
    x = torch.randn(7, 400)
    assert torch.equal(layer(x), linear(x))
    # kaiming_uniform_(a=sqrt(5)): uniform in +-1/sqrt(fan_in), variance bound^2 / 3.
    assert layer.lora_A.abs().max() <= 1 / 20
    assert layer.lora_A.var().item() == pytest.approx(1 / 400 / 3, rel=0.02)
    reference = nn.init.kaiming_uniform_(torch.empty(200, 400), a=math.sqrt(5))
    assert layer.lora_A.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=1e-3)


def test_from_linear_shares_the_parameters_and_freezes_them():
    for bias in (True, False):
        linear = nn.Linear(8, 9, bias=bias).to(torch.bfloat16).eval()
        layer = LoRALinear.from_linear(linear)
        assert layer.weight is linear.weight
        assert layer.bias is linear.bias
        assert {n for n, p in layer.named_parameters() if p.requires_grad} == {'lora_A', 'lora_B'}
        assert layer.lora_A.shape == (8, 8)
        assert layer.lora_B.shape == (9, 8)
        assert layer.lora_A.dtype == layer.lora_B.dtype == torch.bfloat16
        assert layer.scale == 1 / 8
        assert not layer.training


def test_a_plain_state_dict_fits():
    plain, layer = nn.Linear(5, 4), LoRALinear(5, 4, rank=2)
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ['lora_A', 'lora_B']
    assert unexpected == []
    assert torch.equal(layer.weight, plain.weight)


def test_reset_draws_from_the_generator_alike_in_every_dtype():
    single = LoRALinear(6, 5, rank=3)
    double = LoRALinear(6, 5, rank=3, dtype=torch.float64)
    single.reset(torch.Generator().manual_seed(4))
    double.reset(torch.Generator().manual_seed(4))
    assert torch.equal(single.lora_A.double(), double.lora_A)
    before = single.lora_A.clone()
    single.reset(torch.Generator().manual_seed(5))
    assert not torch.equal(single.lora_A, before)
    assert not single.lora_B.any()


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.2)]
)
def test_merge_leaves_the_output_and_the_adapter_is_fresh(dtype, tolerance):
    layer = trained(rank=4, alpha=2.0, dtype=dtype)
    x = torch.randn(20, 6, dtype=dtype)
    weight = layer.weight.double() + 0.5 * (layer.lora_B.double() @ layer.lora_A.double())
    before, expected = layer(x), dense_output(layer, x)
    layer.merge()
    # Some processors add a product to a number in one rounding, others in two.
    ulp = 1e-15 if dtype is torch.float64 else 0
    torch.testing.assert_close(layer.weight.data, weight.detach().to(dtype), rtol=0, atol=ulp)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=tolerance)
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=tolerance)
    assert not layer.delta().any()
    assert layer.lora_A.any()


def test_a_group_that_was_held_learns_again_in_the_next_task():
    layer = LoRALinear(4, 4, rank=2)
    layer.held = True
    assert not layer.learns
    layer.merge()
    assert layer.learns


def test_the_adapter_after_a_merge_is_drawn_from_the_generator():
    """In every process the same, and after a resume."""
    layer, fresh = trained(), LoRALinear(6, 5, rank=3)
    layer.merge(torch.Generator().manual_seed(4))
    fresh.reset(torch.Generator().manual_seed(4))
    assert torch.equal(layer.lora_A, fresh.lora_A)


def test_a_merge_of_nothing_writes_nothing_and_one_of_an_adapter_that_is_off_does():
    """-0 plus 0 would be 0, another bit and another fingerprint."""
    layer = LoRALinear(3, 3, rank=1)
    with torch.no_grad():
        layer.weight.fill_(-0.0)
    layer.merge()
    assert layer.weight.signbit().all()
    with torch.no_grad():
        layer.lora_A.fill_(2.0)
        layer.lora_B.fill_(3.0)
    layer.enabled = False
    layer.merge()
    assert torch.equal(layer.weight, torch.full((3, 3), 6.0))  # the scale is 1 / 1


def test_merge_can_be_undone():
    layer = trained(dtype=torch.float64)
    weight, update = layer.weight.clone(), layer.delta().detach()
    layer.merge()
    torch.testing.assert_close(layer.weight - update, weight, rtol=0, atol=1e-14)


def test_evaluation_never_changes_a_weight():
    layer = trained()
    before = copy.deepcopy(layer.state_dict())
    for _ in range(3):
        layer.eval()
        layer(torch.randn(2, 6))
        layer.train()
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_merge_that_is_not_finite_changes_nothing(bad):
    layer = trained()
    with torch.no_grad():
        layer.lora_B[1, 1] = bad
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ForgettingError, match='NaN or infinity'):
        layer.merge()
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_a_merge_that_overflows_the_dtype_is_refused():
    layer = trained(dtype=torch.float16)
    with torch.no_grad():
        layer.lora_A.fill_(300)
        layer.lora_B.fill_(300)
    with pytest.raises(ForgettingError, match='NaN or infinity'):
        layer.merge()


def test_a_step_moves_only_the_adapter():
    layer = trained()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.AdamW(
        [p for p in layer.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    layer(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in layer.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {'lora_A', 'lora_B'}
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_gradients_worked_in_numpy():
    layer = trained(dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    layer(x).square().sum().backward()
    # L = sum y^2: dL/dy = 2 y; dL/dB = s (2y)^T (x A^T); dL/dA = s B^T (2y)^T x.
    dy = 2 * dense_output(layer, x).detach().numpy()
    a, b = layer.lora_A.detach().numpy(), layer.lora_B.detach().numpy()
    torch.testing.assert_close(
        layer.lora_B.grad, torch.from_numpy(2 / 3 * dy.T @ (x.numpy() @ a.T))
    )
    torch.testing.assert_close(layer.lora_A.grad, torch.from_numpy(2 / 3 * b.T @ dy.T @ x.numpy()))


def test_deepcopy_and_pickle():
    layer = trained()
    layer.enabled = False
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    x = torch.randn(3, 6)
    for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), layer(x))
        twin.enabled = True
        torch.testing.assert_close(twin(x).double(), dense_output(layer, x), rtol=0, atol=1e-5)
        assert twin.lora_B is not layer.lora_B
        assert {n for n, p in twin.named_parameters() if p.requires_grad} == {'lora_A', 'lora_B'}


@pytest.mark.parametrize('rank', [0, -1, 5, 2.0, None])
def test_rank_out_of_range(rank):
    with pytest.raises(ForgettingError, match='whole numbers 1 to 4'):
        LoRALinear(7, 4, rank=rank)


@pytest.mark.parametrize('alpha', [0, -1.0, math.nan, math.inf, '1'])
def test_lora_alpha_out_of_range(alpha):
    with pytest.raises(ForgettingError, match='lora_alpha'):
        LoRALinear(7, 4, rank=2, lora_alpha=alpha)


def test_a_parametrized_linear_is_refused():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(9, 8))
    with pytest.raises(ForgettingError, match='computed, not stored'):
        LoRALinear.from_linear(linear)


def test_equals_the_lora_layer_of_peft():
    peft = pytest.importorskip('peft')
    model = nn.Sequential(nn.Linear(6, 5))
    layer = trained()
    model[0].load_state_dict({'weight': layer.weight, 'bias': layer.bias})
    config = peft.LoraConfig(r=3, lora_alpha=2, target_modules=['0'], lora_dropout=0.0)
    theirs = peft.inject_adapter_in_model(config, model)[0]
    with torch.no_grad():
        theirs.lora_A['default'].weight.copy_(layer.lora_A)
        theirs.lora_B['default'].weight.copy_(layer.lora_B)
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(x), theirs(x))
    torch.testing.assert_close(layer.delta(), theirs.get_delta_weight('default'))
    theirs.merge()
    layer.merge()
    torch.testing.assert_close(layer.weight, theirs.get_base_layer().weight)


def test_xavier_in_the_first_task_only():
    """s B A has 3.4 % of the norm of a Xavier-uniform weight of the authors' detector's size."""
    torch.manual_seed(0)
    n_in, n_out, rank = 256, 1024, 8
    layer = LoRALinear(n_in, n_out, rank=rank, init='xavier')
    nn.init.xavier_uniform_(layer.weight)
    assert not layer.lora_B.any()  # injecting changes nothing
    layer.reset(first=True)
    for matrix, width in ((layer.lora_A, n_in), (layer.lora_B, n_out)):
        bound = math.sqrt(6 / (width + rank))
        assert matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    # E |s B A|^2 = s^2 in out r Var(A) Var(B), E |W|^2 = in out Var(W).
    variances = [2 / (n_in + rank), 2 / (n_out + rank), 2 / (n_in + n_out)]
    expected = math.sqrt(rank * variances[0] * variances[1] / variances[2]) / rank
    assert expected == pytest.approx(0.034, abs=5e-4)
    share = layer.delta().norm() / layer.weight.norm()
    assert share.item() == pytest.approx(expected, rel=0.05)
    layer.merge()
    assert not layer.lora_B.any() and layer.lora_A.abs().max() <= 1 / math.sqrt(n_in)


def test_xavier_changes_nothing_where_it_is_not_asked_for():
    plain, xavier = LoRALinear(6, 5, rank=3), LoRALinear(6, 5, rank=3, init='xavier')
    for layer, first in ((plain, True), (plain, False), (xavier, False)):
        layer.reset(torch.Generator().manual_seed(1), first=first)
        assert not layer.lora_B.any()
    assert torch.equal(plain.lora_A, xavier.lora_A)
    for layer in (plain, xavier):
        layer.reset(torch.Generator().manual_seed(1), first=True)
    assert xavier.lora_B.all() and not plain.lora_B.any()


def test_unknown_init():
    with pytest.raises(ForgettingError, match="init is 'normal'; it can be kaiming or xavier"):
        LoRALinear(4, 4, rank=2, init='normal')


def test_the_sum_has_one_order():
    """1e20 + 1 - 1e20 from left to right is 0 in float64; in another order it is 1."""
    lora_a, lora_b = torch.ones(3, 1), torch.tensor([[1e20, 1.0, -1e20]])
    assert merged_weight(torch.zeros(1, 1), lora_a, lora_b, 1.0).item() == 0.0
