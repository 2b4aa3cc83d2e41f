"""What a tuner of whole parameters leaves is as trustworthy as an adapter."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import apply_adapter, fingerprint, inject_lora, lora_layers, save_adapter
from mmgslora.lora.stored import StoredAdapter, norms
from mmgslora.tuning import Full

from .tiny_models import TorchTransformer, Transformer


@pytest.fixture
def trained(tmp_path):
    """A model whose first block was trained in place; the plain one, and the folder."""
    torch.manual_seed(0)
    plain = Transformer()
    model = copy.deepcopy(plain)
    tune = Full(target=r'layers\.0\..*')
    tune.attach(model, ())
    tune.begin_task()
    with torch.no_grad():
        model.layers[0][1].fn.norm.bias.add_(0.5)
    tune.save(tmp_path / 'a', dict(task=1, classes=['cat']))
    return plain, model, tmp_path / 'a'


def test_what_was_trained_in_place(trained):
    plain, model, folder = trained
    stored = StoredAdapter.read(folder)
    assert list(stored.whole) == ['layers.0.1.fn.norm.bias'] and not stored.pairs
    assert stored.metadata['base'] == fingerprint(plain)
    assert stored.metadata['result'] == fingerprint(model)
    assert stored.changes(plain.state_dict()) == {'layers.0.1.fn.norm.bias'}
    assert apply_adapter(plain, folder)['classes'] == ['cat']
    assert fingerprint(plain) == fingerprint(model)
    with pytest.raises(ForgettingError, match='is merged into this model already'):
        apply_adapter(plain, folder)
    with pytest.raises(ForgettingError, match='belongs to another model'):
        apply_adapter(Transformer(), folder)


def test_an_edited_file(trained):
    plain, _, folder = trained
    path = folder / 'changed.safetensors'
    path.write_bytes(path.read_bytes()[:-1] + b'\x01')
    with pytest.raises(ForgettingError, match='changed.safetensors in .* was changed'):
        apply_adapter(plain, folder)


def test_attention(tmp_path):
    """The packed projection of an nn.MultiheadAttention has a name of its own."""
    torch.manual_seed(0)
    plain = TorchTransformer().eval()
    model = copy.deepcopy(plain)
    inject_lora(model, rank=2, layers='all')
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    save_adapter(model, tmp_path / 'a', {})
    x = torch.randn(2, 5, 8)
    live, before = model(x), copy.deepcopy(plain)
    apply_adapter(plain, tmp_path / 'a')
    torch.testing.assert_close(plain.train()(x), live, rtol=0, atol=1e-5)
    peft = pytest.importorskip('peft')
    theirs = peft.PeftModel.from_pretrained(before, tmp_path / 'a')
    torch.testing.assert_close(theirs.train()(x), live, rtol=0, atol=1e-5)
    changed = StoredAdapter.read(tmp_path / 'a').changes(plain.state_dict())
    assert 'encoder.layers.0.self_attn.in_proj_weight' in changed


def test_attention_of_peft_is_refused(tmp_path):
    """PEFT adds the update of out_proj twice, live and merged, and says nowhere that it does."""
    peft = pytest.importorskip('peft')
    config = peft.LoraConfig(r=2, target_modules=['self_attn'], init_lora_weights=False)
    peft.get_peft_model(TorchTransformer(), config).save_pretrained(tmp_path / 'a')
    with pytest.raises(ForgettingError, match='out_proj PEFT counts twice'):
        apply_adapter(TorchTransformer(), tmp_path / 'a')


def stored(whole=(), **metadata):
    """A of ones and B of twos on layer a, scale 3 / 1."""
    pair = torch.ones(1, 2), torch.full((2, 1), 2.0)
    return StoredAdapter(Path('x'), {'a': pair}, dict(whole), ('a',), 3.0, False, metadata)


def test_an_adapter_beside_a_module_that_was_replaced():
    """Its matrices come on top of the weight that replaces the old one: 5 + 3 * 2 * 1."""
    state = {'a.weight': torch.zeros(2, 2), 'a.bias': torch.zeros(2)}
    merged = stored({'a.weight': torch.full((2, 2), 5.0)}).merged(state)
    assert torch.equal(merged['a.weight'], torch.full((2, 2), 11.0))
    assert torch.equal(merged['a.bias'], torch.zeros(2)) and not state['a.weight'].any()


def test_a_weight_of_two_names_changes_under_both():
    state = {f'{name}.weight': torch.zeros(2, 2) for name in 'abc'}
    found = stored(also_named={'a.weight': ['b.weight']})
    assert found.changes(state) == {'a.weight', 'b.weight'}
    merged = found.merged(state)
    assert [merged[f'{name}.weight'][0, 0].item() for name in 'abc'] == [6, 6, 0]


def test_norms_by_hand():
    """B is 3-4-0 long, A doubles one column: |B| = 5, |0.5 B A| = 0.5 * 5 * 2."""
    pair = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0], [4.0], [0.0]])
    assert norms(pair, 0.5) == pytest.approx((5.0, 5.0))
