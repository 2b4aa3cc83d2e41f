import copy
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import (
    LoRALinear,
    apply_adapter,
    inject_lora,
    load_adapter,
    lora_layers,
    merge_adapters,
    save_adapter,
)

from .tiny_models import TorchTransformer, Transformer

METADATA = {'task': 1, 'forget': ['cat', 'dog'], 'note': 'für später'}
FILES = ['adapter_config.json', 'adapter_model.safetensors', 'metadata.json']


def adapted(model=None, rank=2, lora_alpha=3.0, seed=0):
    torch.manual_seed(seed)
    model = Transformer() if model is None else model
    inject_lora(model, rank=rank, lora_alpha=lora_alpha)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    return model.eval()


def edit(path, change):
    content = load_file(path) if path.suffix == '.safetensors' else json.loads(path.read_text())
    change(content)
    if path.suffix == '.safetensors':
        save_file(content, path)
    else:
        path.write_text(json.dumps(content))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    model = adapted(Transformer().to(dtype))
    save_adapter(model, tmp_path / 'new' / 'task_1', METADATA)
    assert sorted(path.name for path in (tmp_path / 'new' / 'task_1').iterdir()) == FILES
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['task_1']

    other = adapted(Transformer().to(dtype), seed=9)
    assert load_adapter(other, str(tmp_path / 'new' / 'task_1')) == METADATA
    for mine, theirs in zip(lora_layers(model).values(), lora_layers(other).values()):
        assert torch.equal(mine.lora_A, theirs.lora_A)
        assert torch.equal(mine.lora_B, theirs.lora_B)
        assert theirs.lora_B.requires_grad


def test_the_layout_is_that_of_peft(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / 'a', {})
    names = list(lora_layers(model))
    keys = load_file(tmp_path / 'a' / 'adapter_model.safetensors').keys()
    assert sorted(keys) == sorted(
        f'base_model.model.{name}.lora_{matrix}.weight' for name in names for matrix in 'AB'
    )
    config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
    assert (config['peft_type'], config['r'], config['lora_alpha']) == ('LORA', 2, 3.0)
    assert config['target_modules'] == names


@pytest.mark.parametrize('make', [Transformer, TorchTransformer])
def test_peft_loads_it_into_the_plain_model(tmp_path, make):
    peft = pytest.importorskip('peft')
    torch.manual_seed(3)
    plain = make().eval()
    model = adapted(copy.deepcopy(plain))
    save_adapter(model, tmp_path / 'a', METADATA)
    x = torch.randn(2, 5, 8)
    before = plain(x)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # PEFT warns of keys and weights it does not know.
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / 'a')
    # In training mode, as PyTorch's fused evaluation path drops the layers of PEFT.
    theirs.train()
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-5)
    assert not torch.allclose(before, model(x), atol=1e-2)
    merged = theirs.merge_and_unload().eval()
    torch.testing.assert_close(merged(x), model(x), rtol=0, atol=1e-5)


def test_peft_loads_a_whole_detector(tmp_path):
    peft = pytest.importorskip('peft')
    from .tiny_models import small_detr

    plain = small_detr('deformable_detr/deformable-detr_r50_16xb2-50e_coco')
    model = copy.deepcopy(plain)
    inject_lora(model)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    save_adapter(model, tmp_path / 'a', {})
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / 'a').merge_and_unload()
    for name, layer in lora_layers(model).items():
        layer.merge()
        torch.testing.assert_close(theirs.get_submodule(name).weight, layer.weight)


def test_peft_loads_modules_that_were_saved_whole(tmp_path):
    peft = pytest.importorskip('peft')
    torch.manual_seed(3)
    plain = Transformer().eval()
    model = adapted(copy.deepcopy(plain))
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm))
    with torch.no_grad():
        model.get_submodule(name).weight.add_(torch.randn(8))
    save_adapter(model, tmp_path / 'a', {}, modules_to_save=[name])
    x = torch.randn(2, 5, 8)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / 'a').train()
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-5)

    ours = copy.deepcopy(plain)
    assert apply_adapter(ours, tmp_path / 'a') == {}
    torch.testing.assert_close(ours(x), model(x), rtol=0, atol=1e-5)
    again = adapted(copy.deepcopy(plain), seed=9)
    load_adapter(again, tmp_path / 'a')
    assert torch.equal(again(x), model(x))


def test_applied_adapters_are_the_merged_model_bit_for_bit(tmp_path):
    """Three tasks in a row, each from where the last one ended."""
    torch.manual_seed(3)
    plain = Transformer().eval()
    model = adapted(copy.deepcopy(plain))
    for task in (1, 2, 3):
        for layer in lora_layers(model).values():
            nn.init.normal_(layer.lora_B)
        save_adapter(model, tmp_path / f'{task}', dict(task=task))
        merge_adapters(model)
        assert apply_adapter(plain, tmp_path / f'{task}') == dict(task=task)
        state = model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


def test_applying_what_does_not_fit_changes_nothing(tmp_path):
    save_adapter(adapted(), tmp_path / 'a', {})
    plain = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ForgettingError, match='Sequential has no module .layers.0'):
        apply_adapter(plain, tmp_path / 'a')
    plain = Transformer()
    before = copy.deepcopy(plain.state_dict())
    name = list(lora_layers(adapted()))[-1]
    last = f'base_model.model.{name}.lora_B.weight'
    edit(tmp_path / 'a' / FILES[1], lambda t: t.update({last: torch.full_like(t[last], math.nan)}))
    with pytest.raises(ForgettingError, match=f'{name}: Merging would put NaN'):
        apply_adapter(plain, tmp_path / 'a')
    edit(tmp_path / 'a' / FILES[1], lambda t: t.pop(last))
    with pytest.raises(ForgettingError, match=f"lacks '{last}'"):
        apply_adapter(plain, tmp_path / 'a')
    assert all(torch.equal(before[key], value) for key, value in plain.state_dict().items())


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        save_adapter(adapted(), tmp_path / 'a', {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / 'a').iterdir()} == {0o644}
    assert (tmp_path / 'a').stat().st_mode & 0o777 == 0o755


def test_an_adapter_is_replaced_and_nothing_else_is(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / 'a', {'take': 1})
    save_adapter(model, tmp_path / 'a', {'take': 2})
    assert load_adapter(model, tmp_path / 'a') == {'take': 2}
    assert [path.name for path in tmp_path.iterdir()] == ['a']

    (tmp_path / 'a' / 'thesis.tex').write_text('years of work')
    with pytest.raises(ForgettingError, match="holds 'thesis.tex'"):
        save_adapter(model, tmp_path / 'a', {})
    assert (tmp_path / 'a' / 'thesis.tex').exists()
    (tmp_path / 'file').write_text('')
    with pytest.raises(ForgettingError, match="holds 'file'"):
        save_adapter(model, tmp_path / 'file', {})


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_adapter(adapted(), tmp_path / 'a', {'not json': object()})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_half_adapter(tmp_path):
    # Killed in the middle of writing: after the weights, before the rest.
    script = textwrap.dedent("""
        import os, signal, sys
        from torch import nn
        from mmgslora.lora import adapter_file, inject_lora

        model = nn.Sequential(nn.Linear(4, 4))
        inject_lora(model, rank=2, target='0')
        adapter_file.json.dumps = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        adapter_file.save_adapter(model, sys.argv[1], {})
    """)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, '-c', script, tmp_path / 'a'], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / 'a').exists()
    assert all(path.name.startswith('.') for path in tmp_path.iterdir())

    save_adapter(adapted(), tmp_path / 'a', {})
    assert load_adapter(adapted(), tmp_path / 'a') == {}


def test_a_model_of_several_ranks_has_no_file(tmp_path):
    model = nn.Sequential(LoRALinear(4, 4, rank=1), LoRALinear(4, 4, rank=2))
    with pytest.raises(ForgettingError, match=r'this model has \[\(1, 1.0\), \(2, 1.0\)\]'):
        save_adapter(model, tmp_path / 'a', {})
    with pytest.raises(ForgettingError, match='call inject_lora first'):
        save_adapter(nn.Linear(4, 4), tmp_path / 'a', {})
    assert list(tmp_path.iterdir()) == []


FIRST = 'base_model.model.layers.0.1.fn.fn.net.0.lora_A.weight'


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        (FILES[1], lambda t: t.pop(FIRST), f"lacks '{FIRST}'"),
        (FILES[1], lambda t: t.update(extra=torch.zeros(1)), "has 'extra', which the model lacks"),
        (
            FILES[1],
            lambda t: t.update({FIRST: torch.zeros(2, 9)}),
            r'shape \(2, 9\) in .*needs \(2, 8\)',
        ),
        (FILES[0], lambda c: c.update(lora_alpha=5), 'lora_alpha is 5 in .* and 3.0 in'),
        (FILES[0], lambda c: c.pop('lora_alpha'), 'lora_alpha is None'),
    ],
)
def test_an_adapter_that_does_not_fit(tmp_path, file, change, message):
    model = adapted()
    save_adapter(model, tmp_path / 'a', {})
    edit(tmp_path / 'a' / file, change)
    other = adapted(seed=9)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ForgettingError, match=message):
        load_adapter(other, tmp_path / 'a')
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_the_rank_must_fit(tmp_path):
    save_adapter(adapted(rank=2), tmp_path / 'a', {})
    with pytest.raises(ForgettingError, match=r"'.*net.0.lora_A.weight' has shape \(2, 8\)"):
        load_adapter(adapted(rank=3), tmp_path / 'a')


def test_a_folder_that_cannot_be_read(tmp_path):
    model = adapted()
    with pytest.raises(ForgettingError, match='not a readable adapter folder'):
        load_adapter(model, tmp_path / 'nothing')
    for name in FILES:
        save_adapter(model, tmp_path / 'a', {})
        (tmp_path / 'a' / name).write_bytes(b'\x00broken')
        with pytest.raises(ForgettingError, match='not a readable adapter folder'):
            load_adapter(model, tmp_path / 'a')
    (tmp_path / 'a' / FILES[2]).unlink()
    assert load_adapter(model, tmp_path / 'a') == {}
