"""LoRA on the packed projection of nn.MultiheadAttention, against PyTorch's own module."""

import copy

import pytest
import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAMultiheadAttention


def attention(batch_first=False, **settings):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first, **settings).double().eval()
    adapted = LoRAMultiheadAttention.from_attention(copy.deepcopy(plain), rank=2, lora_alpha=4)
    return plain, adapted


@pytest.mark.parametrize('batch_first', [False, True])
def test_equals_the_plain_module_with_the_sum_of_weights(batch_first):
    plain, adapted = attention(batch_first)
    x, y = torch.randn(3, 5, 8).double(), torch.randn(3, 5, 8).double()
    mask = torch.triu(torch.ones(5 if batch_first else 3, 5 if batch_first else 3), 1).bool()
    torch.testing.assert_close(adapted(x, y, y, attn_mask=mask), plain(x, y, y, attn_mask=mask))
    nn.init.normal_(adapted.lora_B)
    with torch.no_grad():
        plain.in_proj_weight += 2 * adapted.lora_B @ adapted.lora_A
    torch.testing.assert_close(adapted(x, y, y), plain(x, y, y))
    torch.testing.assert_close(adapted(x, x, x)[0], plain(x, x, x, need_weights=False)[0])
    one = torch.randn(5, 8).double()  # without a batch
    torch.testing.assert_close(adapted(one, one, one)[0], plain(one, one, one)[0])
    adapted.merge()
    torch.testing.assert_close(adapted(x, y, y), plain(x, y, y))


@pytest.mark.parametrize('batch_first', [False, True])
def test_padding_dropout_and_weights_are_those_of_the_plain_module(batch_first):
    """As a DETR gives it images of several sizes; the adapter is zero."""
    plain, adapted = attention(batch_first, dropout=0.5)
    x = torch.randn(3, 5, 8).double()
    padding = torch.zeros((3, 5) if batch_first else (5, 3), dtype=torch.bool)
    padding[1, 1:] = True
    given = dict(key_padding_mask=padding, average_attn_weights=False)
    (ours, weights), (theirs, wanted) = adapted(x, x, x, **given), plain(x, x, x, **given)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(weights, wanted)
    assert not torch.allclose(ours, plain(x, x, x)[0]) and weights.shape[1] == 2  # heads
    for module in (plain, adapted):
        module.train()
        torch.manual_seed(1)
        ours, theirs = module(x, x, x)[0], ours
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, adapted.eval()(x, x, x)[0])
    assert adapted.called


def test_off_is_the_plain_module_and_only_the_adapter_learns():
    plain, adapted = attention()
    nn.init.normal_(adapted.lora_B)
    x = torch.randn(3, 5, 8).double()
    adapted.enabled = False
    assert torch.equal(adapted(x, x, x)[0], plain(x, x, x)[0])
    adapted.enabled = True
    adapted(x, x, x)[0].square().sum().backward()
    grads = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert grads == {'lora_A', 'lora_B'}
    assert set(adapted.state_dict()) - set(plain.state_dict()) == {'lora_A', 'lora_B'}


def test_peft_computes_the_same():
    """PEFT's LoRA of the same module, with the same matrices."""
    from peft import LoraConfig, get_peft_model

    class Holder(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.attn = inner

        def forward(self, x):
            return self.attn(x, x, x)[0]

    plain, adapted = attention()
    nn.init.normal_(adapted.lora_B)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=['attn'], lora_dropout=0.0)
    theirs = get_peft_model(Holder(plain), config).double()
    layer = theirs.base_model.model.attn
    with torch.no_grad():
        layer.lora_A['default'].weight.copy_(adapted.lora_A)
        layer.lora_B['default'].weight.copy_(adapted.lora_B)
    x = torch.randn(3, 5, 8).double()
    torch.testing.assert_close(theirs(x), adapted(x, x, x)[0])


def test_widths_of_their_own_are_refused():
    with pytest.raises(ForgettingError, match='no packed projection'):
        attention(kdim=4, vdim=4)
    with pytest.raises(ForgettingError, match='rank 9 is not possible'):
        LoRAMultiheadAttention.from_attention(nn.MultiheadAttention(8, 2), rank=9)
