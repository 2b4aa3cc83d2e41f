"""Files that would run a command are not read; what checkpoints hold is, on every path."""

import copy
import json
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.fileio import dump
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmgslora.errors import ForgettingError
from mmgslora.loading import load_restricted, local_path, read_checkpoint, read_results


class Attack:
    def __init__(self, harm):
        self.harm = harm

    def __reduce__(self):
        return os.system, (f'touch {self.harm}',)


@pytest.fixture
def attack(tmp_path):
    """A checkpoint that would make a file, and the file."""
    path, harm = tmp_path / 'attack.pth', tmp_path / 'harm'
    torch.save(dict(state_dict={}, meta=Attack(harm)), path)
    return path, harm


def _plain_unsafe(file, map_location=None, **_):
    return unsafe_load(file, map_location=map_location, weights_only=False)


unsafe_load = torch.load


def test_the_attack_works(attack):
    """Else the tests below would show nothing."""
    path, harm = attack
    unsafe_load(path, weights_only=False)
    assert harm.exists()


@pytest.mark.parametrize('unsafe_by_default', [False, True])
def test_a_checkpoint_never_runs_a_command(attack, monkeypatch, unsafe_by_default):
    path, harm = attack
    if unsafe_by_default:  # as torch before 2.6, and as an environment variable can make any
        monkeypatch.setattr(torch, 'load', _plain_unsafe)
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(ForgettingError, match=r"attack.pth' cannot be read: it names code to run"):
        read_checkpoint(str(path))
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(str(path))
    with pytest.raises(pickle.UnpicklingError, match='posix.system is not allowed'):
        load_restricted(path)
    assert not harm.exists()


def test_the_tools_refuse_it(attack, tools, capsys, tmp_path, repo_root):
    path, harm = attack
    config = str(repo_root / 'configs/gslora_shapes_forget.py')
    results = tmp_path / 'attack.pkl'
    results.write_bytes(pickle.dumps([Attack(harm)]))
    for name, *arguments in (
        ('test', config, str(path)),
        ('test', config, str(results), '--forget-eval'),
        ('train', config, '--resume', str(path)),
        ('train', config, '--cfg-options', f'load_from={path}'),
    ):
        with pytest.raises(SystemExit) as end:
            tools[name]([*arguments, '--work-dir', str(tmp_path / 'run')])
        assert end.value.code == 1
        assert 'error: ' in capsys.readouterr().err
    assert not harm.exists() and not (tmp_path / 'run').exists()


CONTENT = dict(
    state_dict=dict(weight=torch.arange(3.0), half=torch.ones(2, dtype=torch.bfloat16)),
    meta=dict(epoch=3, names=('a', 'b'), size=torch.Size([2])),
    message_hub=dict(history=HistoryBuffer([1.0, 4.0], [1, 1]), best=np.float64(0.5)),
    ids=np.arange(4),
    parameter=torch.nn.Parameter(torch.ones(1)),
)


@pytest.mark.parametrize('zipped', [True, False])
def test_what_checkpoints_hold_is_read_without_torchs_safe_loader_too(tmp_path, zipped):
    path = tmp_path / 'content.pth'
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    for found in (load_restricted(path), read_checkpoint(str(path))):
        assert torch.equal(found['state_dict']['weight'], CONTENT['state_dict']['weight'])
        assert found['state_dict']['half'].dtype == torch.bfloat16
        assert found['meta'] == CONTENT['meta']
        assert found['message_hub']['history'].mean() == 2.5
        assert found['message_hub']['best'] == 0.5
        assert found['ids'].tolist() == [0, 1, 2, 3]
        assert found['parameter'].requires_grad


def test_results_are_read_as_mmengine_reads_them(tmp_path):
    results = [
        dict(img_id=7, pred_instances=dict(scores=torch.tensor([0.5]), labels=torch.tensor([1]))),
        dict(img_id=8, ori_shape=(4, 5), area=np.float32(2.0), boxes=np.zeros((1, 4))),
    ]
    dump(copy.deepcopy(results), tmp_path / 'results.pkl')
    found = read_results(str(tmp_path / 'results.pkl'))
    assert torch.equal(found[0]['pred_instances']['scores'], torch.tensor([0.5]))
    assert found[1]['boxes'].shape == (1, 4) and found[1]['ori_shape'] == (4, 5)
    assert found[1]['area'] == 2.0 and found[0]['img_id'] == 7


def test_a_tensor_inside_results_cannot_hide_an_attack(tmp_path):
    """Plain pickles keep storages as bytes that torch itself would unpickle."""

    class Hidden:
        def __reduce__(self):
            inner = tmp_path / 'inner.pth'
            torch.save(Attack(tmp_path / 'harm'), inner)
            return torch.storage._load_from_bytes, (inner.read_bytes(),)

    (tmp_path / 'results.pkl').write_bytes(pickle.dumps([Hidden()]))
    with pytest.raises(ForgettingError, match='results.pkl. cannot be read'):
        read_results(str(tmp_path / 'results.pkl'))
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('content', [b'', b'hello', json.dumps([1]).encode()])
def test_results_that_are_none(tmp_path, content):
    (tmp_path / 'results.pkl').write_bytes(content)
    with pytest.raises(ForgettingError, match='results.pkl. cannot be read'):
        read_results(str(tmp_path / 'results.pkl'))


def test_where_an_address_is_kept(monkeypatch, tmp_path):
    """Where torch would look for it, so that nothing is fetched."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    address = 'https://nowhere.invalid/v3.0/some%20detr.pth?x=/y.pth#part'
    path = local_path(address)
    assert path == str(tmp_path / 'checkpoints/some%20detr.pth')
    (tmp_path / 'checkpoints').mkdir()
    torch.save(dict(meta=3), path)
    assert read_checkpoint(address) == dict(meta=3)
    for as_it_is in ('./a/../b.pth', '/c.pth', 'torchvision://resnet50'):
        assert local_path(as_it_is) == as_it_is


def test_the_home_folder_is_where_mmengine_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(dict(state_dict={}), tmp_path / 'model.pth')
    assert CheckpointLoader.load_checkpoint('~/model.pth') == read_checkpoint('~/model.pth')
    assert local_path('~/model.pth') == str(tmp_path / 'model.pth')
