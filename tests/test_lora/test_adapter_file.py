import copy
import hashlib
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
    fingerprint,
    inject_lora,
    load_adapter,
    lora_layers,
    merge_adapters,
    save_adapter,
)

from .tiny_models import TorchTransformer, Transformer

METADATA = {'task': 1, 'classes': ['cat', 'dog'], 'note': 'für später'}
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


def edit_unnoticed(folder, file, change):
    """As an edit of somebody who sets the file's hash right as well."""
    edit(folder / file, change)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    edit(folder / FILES[2], lambda m: m['files'].update({file: digest}))


def same(model, before):
    return all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    model = adapted(Transformer().to(dtype))
    save_adapter(model, tmp_path / 'new' / 'task_1', METADATA)
    assert sorted(path.name for path in (tmp_path / 'new' / 'task_1').iterdir()) == FILES
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['task_1']

    other = copy.deepcopy(model)
    for layer in lora_layers(other).values():
        nn.init.normal_(layer.lora_A)
        nn.init.normal_(layer.lora_B)
    metadata = load_adapter(other, str(tmp_path / 'new' / 'task_1'))
    assert METADATA.items() <= metadata.items()
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


def test_what_it_says_of_itself(tmp_path):
    """Fingerprints of the model before and after, and the groups, from the model itself."""
    model = adapted()
    plain = {key: value for key, value in model.state_dict().items() if 'lora_' not in key}
    save_adapter(model, tmp_path / 'a', METADATA)
    metadata = json.loads((tmp_path / 'a' / 'metadata.json').read_text())
    assert metadata['base'] == fingerprint(plain)
    merge_adapters(model)
    assert metadata['result'] == fingerprint(model) != metadata['base']
    names = list(lora_layers(model))
    assert metadata['groups'] == {'layers.0.1': names[:2], 'layers.1.1': names[2:]}
    assert metadata['versions']['torch'] == torch.__version__.split('+')[0]
    assert sys.argv[0] in metadata['command']
    assert metadata['also_named'] == {}


@pytest.mark.parametrize('make', [Transformer, TorchTransformer])
@pytest.mark.parametrize('zero_layers', [0, 2])
def test_peft_loads_it_into_the_plain_model(tmp_path, make, zero_layers):
    peft = pytest.importorskip('peft')
    torch.manual_seed(3)
    plain = make().eval()
    model = adapted(copy.deepcopy(plain))
    for layer in list(lora_layers(model).values())[:zero_layers]:
        nn.init.zeros_(layer.lora_B)
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


def test_every_zero_layer_makes_the_file_smaller(tmp_path):
    """And one that adds nothing at all is a file that PEFT still loads."""
    peft = pytest.importorskip('peft')
    torch.manual_seed(3)
    plain = Transformer().eval()
    model = adapted(copy.deepcopy(plain))
    sizes = []
    for layer in (None, *lora_layers(model).values()):
        if layer is not None:
            nn.init.zeros_(layer.lora_B)
        save_adapter(model, tmp_path / 'a', {})
        sizes.append((tmp_path / 'a' / FILES[1]).stat().st_size)
    assert sizes == sorted(set(sizes), reverse=True) and sizes[-1] < 100
    x = torch.randn(2, 5, 8)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / 'a')
    assert torch.equal(theirs(x), plain(x))
    apply_adapter(plain, tmp_path / 'a')
    assert torch.equal(plain(x), model(x))


def test_layers_left_out_are_zero_again(tmp_path):
    model = adapted()
    first, *others = lora_layers(model).values()
    nn.init.zeros_(first.lora_B)
    x = torch.randn(2, 5, 8)
    before = model(x)
    save_adapter(model, tmp_path / 'a', {})
    for layer in (first, *others):
        nn.init.normal_(layer.lora_B)
    load_adapter(model, tmp_path / 'a')
    assert not first.lora_B.any() and torch.equal(model(x), before)


@pytest.mark.parametrize('rank_stabilised', [False, True])
def test_what_peft_trained_loads_here(tmp_path, rank_stabilised):
    """LoRA of PEFT on the feed-forward Linears, named by their suffix as its users do."""
    peft = pytest.importorskip('peft')
    torch.manual_seed(3)
    plain = TorchTransformer().eval()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=['linear1', 'linear2'],
        modules_to_save=['head'],
        use_rslora=rank_stabilised,
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(copy.deepcopy(plain), config).train()
    with torch.no_grad():
        theirs.base_model.model.head.modules_to_save['default'].bias.add_(1.0)
    theirs.save_pretrained(tmp_path / 'theirs')
    x = torch.randn(2, 5, 8)
    expected = theirs(x)

    ours = copy.deepcopy(plain)
    assert apply_adapter(ours, tmp_path / 'theirs') == {}
    torch.testing.assert_close(ours.train()(x), expected, rtol=0, atol=1e-5)
    live = adapted(copy.deepcopy(plain), rank=4, lora_alpha=12 if rank_stabilised else 6)
    load_adapter(live, tmp_path / 'theirs')
    torch.testing.assert_close(live.train()(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(use_dora=True), 'use_dora is True'),
        (dict(bias='all'), "bias is 'all'"),
        (dict(alpha_pattern={'0': 3}), 'alpha_pattern is'),
        (dict(init_lora_weights='pissa'), "init_lora_weights is 'pissa'"),
        (dict(init_lora_weights='olora'), "init_lora_weights is 'olora'"),
        (dict(alora_invocation_tokens=[1]), 'alora_invocation_tokens is'),
        (dict(peft_type='IA3'), "type 'IA3'; it must be LORA"),
        (dict(lora_alpha=None), 'lora_alpha is None'),
    ],
)
def test_what_peft_can_and_this_package_cannot(tmp_path, setting, message):
    model = adapted()
    save_adapter(model, tmp_path / 'a', {})
    edit(tmp_path / 'a' / FILES[0], lambda c: c.update(setting))
    (tmp_path / 'a' / FILES[2]).unlink()
    with pytest.raises(ForgettingError, match=message):
        load_adapter(model, tmp_path / 'a')


@pytest.mark.parametrize(
    ('setting', 'of', 'values'),
    [
        ('kasa_config', 'KasaConfig', {}),
        ('monteclora_config', 'MontecloraConfig', {}),
        ('use_bdlora', 'BdLoraConfig', dict(target_modules_bd_a=['linear'], nblocks=2)),
        ('velora_config', 'VeloraConfig', dict(num_groups=2)),
    ],
)
def test_variants_of_peft_are_refused_by_name(tmp_path, setting, of, values):
    peft = pytest.importorskip('peft')
    if not hasattr(peft.LoraConfig(), setting):
        pytest.skip(f'this version of PEFT has no {setting}')
    variant = {setting: getattr(peft.tuners.lora.config, of)(**values)}
    config = peft.LoraConfig(r=4, target_modules=['linear1', 'linear2'], **variant)
    peft.get_peft_model(TorchTransformer(), config).save_pretrained(tmp_path)
    with pytest.raises(ForgettingError, match=f'{setting} is .*without it only'):
        apply_adapter(TorchTransformer(), tmp_path)


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


def test_a_head_of_cosines_that_peft_saved_whole_and_sealed(tmp_path):
    """Its buffer is one that the plain model does not have yet."""
    peft = pytest.importorskip('peft')
    from mmgslora.models import CosineMarginHead, seal_layer

    plain = nn.ModuleDict(dict(body=TorchTransformer(), head=CosineMarginHead(8, 4)))
    config = peft.LoraConfig(r=2, target_modules=['linear1'], modules_to_save=['head'])
    theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    seal_layer(theirs.base_model.model['head'].modules_to_save['default'], [1])
    theirs.save_pretrained(tmp_path / 'theirs')
    apply_adapter(plain, tmp_path / 'theirs')
    assert plain['head'].sealed.tolist() == [0, 1, 0, 0]


def test_a_model_that_holds_one_module_in_two_places(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

    plain = Shared()
    model = copy.deepcopy(plain)
    inject_lora(model, rank=2, target='first')
    nn.init.normal_(model.first.lora_B)
    save_adapter(model, tmp_path / 'a', {})
    apply_adapter(plain, tmp_path / 'a')
    assert torch.equal(plain.second.weight, model.first.merged_weight())


def test_applied_adapters_are_the_merged_model_bit_for_bit(tmp_path):
    """Three tasks in a row, each from where the last one ended."""
    torch.manual_seed(3)
    plain = Transformer().eval()
    model = adapted(copy.deepcopy(plain))
    x = torch.randn(2, 5, 8)
    for task in (1, 2, 3):
        for layer in lora_layers(model).values():
            nn.init.normal_(layer.lora_B)
        save_adapter(model, tmp_path / f'{task}', dict(task=task))
        live = model(x)
        merge_adapters(model)
        assert apply_adapter(plain, tmp_path / f'{task}')['task'] == task
        assert same(plain, model.state_dict())
        torch.testing.assert_close(plain(x), live, rtol=1e-5, atol=1e-5)


def test_another_base_and_a_second_merge_are_refused(tmp_path):
    torch.manual_seed(3)
    plain = Transformer().eval()
    model = adapted(copy.deepcopy(plain))
    save_adapter(model, tmp_path / 'a', {})
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other.layers[0][0].fn.norm.bias[0] += 1e-7
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ForgettingError, match='belongs to another model: .* with fingerprint'):
        apply_adapter(other, tmp_path / 'a')
    with pytest.raises(ForgettingError, match='belongs to another model'):
        load_adapter(adapted(copy.deepcopy(other)), tmp_path / 'a')
    assert same(other, before)
    apply_adapter(plain, tmp_path / 'a')
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ForgettingError, match='is merged into this model already'):
        apply_adapter(plain, tmp_path / 'a')
    assert same(plain, before)


def test_files_that_were_edited_or_cut_off(tmp_path):
    torch.manual_seed(3)
    plain = Transformer()
    model = adapted(copy.deepcopy(plain))
    folder = tmp_path / 'a'
    for name, what in zip(FILES, ('was changed', 'was changed', 'another model of its base')):
        save_adapter(model, folder, {})
        change = {
            FILES[0]: lambda c: c.update(lora_alpha=4.0),
            FILES[1]: lambda t: next(iter(t.values())).mul_(1.001),
            FILES[2]: lambda m: m.update(result='0' * 64),
        }[name]
        edit(folder / name, change)
        with pytest.raises(ForgettingError, match=what):
            apply_adapter(plain, folder)
    save_adapter(model, folder, {})
    edit_unnoticed(folder, FILES[1], lambda t: next(iter(t.values())).mul_(1.001))
    with pytest.raises(ForgettingError, match='another model of its base'):
        apply_adapter(plain, folder)
    save_adapter(model, folder, {})
    data = (folder / FILES[1]).read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        (folder / FILES[1]).write_bytes(data[:length])
        with pytest.raises(ForgettingError, match='not a readable adapter folder'):
            apply_adapter(plain, folder)


def test_applying_what_does_not_fit_changes_nothing(tmp_path):
    torch.manual_seed(3)
    plain = Transformer()
    save_adapter(adapted(copy.deepcopy(plain)), tmp_path / 'a', {})
    with pytest.raises(ForgettingError, match="of 'layers.* which the model lacks"):
        apply_adapter(nn.Sequential(nn.Linear(8, 8)), tmp_path / 'a')
    before = copy.deepcopy(plain.state_dict())
    name = list(lora_layers(adapted()))[-1]
    last = f'base_model.model.{name}.lora_B.weight'
    edit_unnoticed(
        tmp_path / 'a', FILES[1], lambda t: t.update({last: torch.full_like(t[last], math.nan)})
    )
    with pytest.raises(ForgettingError, match=f'{name}: Merging would put NaN'):
        apply_adapter(plain, tmp_path / 'a')
    edit_unnoticed(tmp_path / 'a', FILES[1], lambda t: t.pop(last))
    with pytest.raises(ForgettingError, match=f"has lora_A of '{name}' and not the other half"):
        apply_adapter(plain, tmp_path / 'a')
    assert same(plain, before)


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
    assert load_adapter(model, tmp_path / 'a')['take'] == 2
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
        import os, pathlib, signal, sys
        from torch import nn
        from mmgslora.lora import inject_lora, save_adapter

        model = nn.Sequential(nn.Linear(4, 4))
        inject_lora(model, rank=2, target='0')
        pathlib.Path.write_text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        save_adapter(model, sys.argv[1], {})
    """)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, '-c', script, tmp_path / 'a'], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / 'a').exists()
    (draft,) = tmp_path.iterdir()
    assert draft.name.startswith('.') and (draft / FILES[1]).exists()

    save_adapter(adapted(), tmp_path / 'a', {})
    assert load_adapter(adapted(), tmp_path / 'a')['base'] == fingerprint(adapted())


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
        (FILES[1], lambda t: t.pop(FIRST), 'has lora_B of .* and not the other half'),
        (FILES[1], lambda t: t.update(extra=torch.zeros(1)), "'extra' in .* is no name that PEFT"),
        (
            FILES[1],
            lambda t: t.update({'base_model.model.extra': torch.zeros(1)}),
            "of 'extra', which the model lacks",
        ),
        (FILES[1], lambda t: t.update({FIRST: torch.zeros(2, 9)}), r'\(32, 9\) .*\(32, 8\) in the'),
        (FILES[1], lambda t: t.update({FIRST: torch.zeros(3, 8)}), r'\(3, 8\) and \(32, 2\)'),
        (FILES[0], lambda c: c.update(lora_alpha=5), 'scale is 2.5 in .* and 1.5 in'),
    ],
)
def test_an_adapter_that_does_not_fit(tmp_path, file, change, message):
    model = adapted()
    save_adapter(model, tmp_path / 'a', {})
    edit_unnoticed(tmp_path / 'a', file, change)
    other = adapted()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ForgettingError, match=message):
        load_adapter(other, tmp_path / 'a')
    assert same(other, before)


def test_the_rank_must_fit(tmp_path):
    save_adapter(adapted(rank=2), tmp_path / 'a', {})
    with pytest.raises(ForgettingError, match='has rank 2 and .*net.0. of the model has 3'):
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
