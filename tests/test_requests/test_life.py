"""A real run of a tiny detector: served, verified, moved, continued, taken back, handed out."""

import copy
import json
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint

from mmgslora.errors import ForgettingError
from mmgslora.preflight import examine
from mmgslora.requests import Ledger, RequestSequence, continued_config, export, revoke, verify
from mmgslora.requests.measure import measure


@pytest.fixture(scope='module')
def served(tiny_cfg, tiny_checkpoint, tmp_path_factory):
    """Two requests, a sealed file after each."""
    folder = tmp_path_factory.mktemp('life')
    cfg = copy.deepcopy(tiny_cfg)
    shutil.copy(tiny_checkpoint, folder / 'plain.pth')
    cfg.load_from, cfg.work_dir = str(folder / 'plain.pth'), str(folder / 'run')
    cfg.experiment_name, cfg.train_cfg.seal = 'life', True
    Runner.from_cfg(copy.deepcopy(cfg)).train()
    return folder / 'run', cfg


def record(work_dir):
    return json.loads((work_dir / 'forgetting.json').read_text())


@pytest.fixture
def moved(served, tmp_path):
    """The work_dir on another machine: a copy, without what MMEngine notes of the old place."""
    work_dir, cfg = served
    shutil.copytree(work_dir, tmp_path / 'elsewhere')
    note = tmp_path / 'elsewhere/last_checkpoint'
    note.write_text('/another/machine/epoch_4.pth')
    return tmp_path / 'elsewhere', cfg


def test_the_ledger_of_a_run(served):
    work_dir, cfg = served
    ledger = Ledger(work_dir)
    events = [(entry['event'], entry['task']) for entry in ledger.entries]
    assert events == [('forgotten', 1), ('sealed', 1), ('forgotten', 2), ('sealed', 2)]
    first, second = ledger.entries[0], ledger.entries[2]
    assert first['classes'] == ['circle', 'square'] and second['base'] == first['result']
    assert first['metrics']['AP_f'] == record(work_dir)['tasks'][0]['metrics']['AP_f']
    assert {'config', 'data', 'annotations', 'base', 'merged'} <= first['files'].keys()
    images = json.loads((work_dir / 'requests/task_01/data.json').read_text())['image_ids']
    used = record(work_dir)['tasks'][0]['train_images']
    assert {side: len(ids) for side, ids in images.items()} == used
    written = Config.fromfile(work_dir / 'requests/task_01/config.py')
    assert written.train_cfg.protocol == cfg.train_cfg.protocol
    adapter = json.loads((work_dir / 'adapters/task_02/metadata.json').read_text())
    assert (adapter['base'], adapter['result']) == (second['base'], second['result'])
    assert (adapter['task'], adapter['classes']) == (2, ['star'])
    found = verify(work_dir)
    assert sum('bit for bit' in sentence for sentence in found) == 2


def test_a_run_that_was_stopped_in_the_middle_of_a_request(served, tmp_path):
    """Resumed in its second request: the same weights before and after each, and a whole ledger."""
    work_dir, cfg = served
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'parts'), 'life_parts'
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    loop, run_epoch = runner.train_loop, runner.train_loop.run_epoch

    def run_three():
        run_epoch()
        loop.stop_training = loop.epoch == 3

    loop.run_epoch = run_three
    runner.train()
    cfg.resume, cfg.load_from, cfg.experiment_name = True, None, 'life_parts_again'
    Runner.from_cfg(cfg).train()
    whole, parts = Ledger(work_dir).entries, Ledger(tmp_path / 'parts').entries
    for key in ('event', 'task', 'base', 'result', 'metrics'):
        assert [e.get(key) for e in parts] == [e.get(key) for e in whole]
    verify(tmp_path / 'parts')


def test_the_next_request_in_a_copied_work_dir(moved):
    """Classes of before stay old, Drop is measured from the first original, all in one record."""
    work_dir, _ = moved
    before = record(work_dir)
    cfg = continued_config(work_dir, ['heart'])
    assert cfg.load_from == str(work_dir / 'epoch_4.pth')
    cfg.experiment_name = 'life_continued'
    Runner.from_cfg(cfg).train()
    after = record(work_dir)
    assert after['tasks'][:2] == before['tasks'] and after['pretrained'] == before['pretrained']
    third = after['tasks'][2]
    assert third['forget'] == ['heart'] and third['old'] == ['circle', 'square', 'star']
    original = before['pretrained']['per_class']['heart']
    assert third['metrics']['Drop'] == pytest.approx(original - third['metrics']['AP_f'], abs=0.5)
    assert after['original_sha256'] == before['original_sha256']
    assert Ledger(work_dir).last('forgotten', 3)['base'] == Ledger(work_dir).entries[2]['result']
    verify(work_dir)
    with pytest.raises(ForgettingError, match="Class 'heart' was forgotten by request 3 already"):
        continued_config(work_dir, ['heart'])


def test_killed_between_the_record_and_the_checkpoint_of_a_request(moved):
    """The record has the request already, the checkpoint is one epoch behind: the same command."""
    work_dir, _ = moved
    (work_dir / 'epoch_4.pth').rename(work_dir / 'epoch_3.pth')
    cfg = continued_config(work_dir, ['star'])
    assert cfg.train_cfg.protocol.tasks == [['circle', 'square'], ['star']]
    assert cfg.load_from == str(work_dir / 'epoch_3.pth')
    (work_dir / 'epoch_3.pth').rename(work_dir / 'epoch_4.pth')
    with pytest.raises(ForgettingError, match="Class 'star' was forgotten by request 2 already"):
        continued_config(work_dir, ['star'])


def test_what_cannot_be_continued(moved):
    work_dir, cfg = moved
    with pytest.raises(ForgettingError, match='No class is given'):
        continued_config(work_dir, [])
    swapped = torch.load(work_dir / 'epoch_4.pth', weights_only=False)
    name = 'detector.decoder.layers.1.ffn.layers.1.bias'
    swapped['state_dict'][name] += 1e-3
    torch.save(swapped, work_dir / 'epoch_4.pth')
    changed = continued_config(work_dir, ['heart'], cfg)
    changed.experiment_name = 'life_swapped'
    with pytest.raises(ForgettingError, match='other weights than request 2 had left .line 3'):
        Runner.from_cfg(changed).train()
    (work_dir / 'epoch_4.pth').unlink()
    with pytest.raises(ForgettingError, match='holds no epoch_.*load_from'):
        continued_config(work_dir, ['heart'])
    unfinished = record(work_dir)
    del unfinished['tasks'][1]
    (work_dir / 'forgetting.json').write_text(json.dumps(unfinished))
    with pytest.raises(ForgettingError, match='1 of its 2 requests is served.*--resume'):
        continued_config(work_dir, ['heart'])
    with pytest.raises(ForgettingError, match='1 of its 2 requests is served.*--resume'):
        revoke(RequestSequence(work_dir), 1)


def test_taken_back_and_measured_again(moved):
    work_dir, cfg = moved
    tasks = record(work_dir)['tasks']
    again = measure(RequestSequence(work_dir), work_dir / 'merged/task_02.pth', [1, 2])
    for key in ('AP_f', 'AP_r', 'AP_o', 'Drop', 'H'):  # the very numbers of the run
        assert again[key] == pytest.approx(tasks[1]['metrics'][key], abs=1e-6)

    entry = revoke(RequestSequence(work_dir), 2)
    for key in ('AP_f', 'AP_r', 'Drop', 'H'):  # those after request 1, which is all that is left
        assert entry['metrics'][key] == pytest.approx(tasks[0]['metrics'][key], abs=1e-6)
    assert any('Line 5: base and 1 adapter give merged/without_02' in s for s in verify(work_dir))
    with pytest.raises(ForgettingError, match='Request 2 was taken back.*load_from'):
        continued_config(work_dir, ['heart'])
    longer = copy.deepcopy(cfg)
    longer.train_cfg.protocol.tasks = [['circle', 'square'], ['star'], ['heart']]
    longer.work_dir, longer.resume = str(work_dir), True
    longer.load_from = str(work_dir / 'epoch_4.pth')
    assert any('Request 2 was taken back' in s for s in examine(longer).sentences)


def test_a_config_that_was_changed_is_not_executed(moved, tmp_path):
    work_dir, _ = moved
    path = work_dir / 'requests/task_02/config.py'
    path.write_text(f'open({str(tmp_path / "ran")!r}, "w")\n' + path.read_text())
    with pytest.raises(ForgettingError, match='Line 3 of .* a config is code'):
        continued_config(work_dir, ['heart'])
    assert not (tmp_path / 'ran').exists()


def test_what_is_handed_out_is_plain(moved, tmp_path):
    work_dir, cfg = moved
    entry = export(RequestSequence(work_dir), tmp_path / 'out.pth', seal=True, final=True)
    checkpoint = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert checkpoint.keys() == {'state_dict', 'meta'}
    assert checkpoint['meta'].keys() == {'dataset_meta', 'cfg', 'forgotten', 'sealed'}
    text = (tmp_path / 'out.pth').read_bytes().lower()
    assert b'lora' not in text and b'optim' not in text and b'message_hub' not in text
    detector = MODELS.build(copy.deepcopy(cfg.model.detector))
    load_checkpoint(detector, str(tmp_path / 'out.pth'), strict=True)
    theirs = torch.load(work_dir / 'sealed/task_02.pth', weights_only=True)['state_dict']
    assert all(torch.equal(value, theirs[key]) for key, value in detector.state_dict().items())
    expected = {'adapters/task_01', 'epoch_4.pth', 'merged/task_01.pth', 'merged/task_02.pth'}
    assert expected <= set(entry['to_destroy']) and cfg.load_from in entry['to_destroy']
    assert 'sealed/task_01.pth' in entry['to_destroy']
    assert 'sealed/task_02.pth' not in entry['to_destroy']

    for path in entry['to_destroy']:  # done as asked, in this copy
        found = work_dir / path
        if found.is_dir():
            shutil.rmtree(found)
        elif found != type(found)(cfg.load_from):
            found.unlink()
    found = verify(work_dir)
    assert any('adapters/task_01/metadata.json was destroyed, as an export' in s for s in found)


def test_a_detector_as_onnx(moved, tmp_path):
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    work_dir, cfg = moved
    out = tmp_path / 'out.onnx'
    export(RequestSequence(work_dir), out, form='onnx', size=(64, 64))
    session = runtime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    boxes, scores, labels = session.run(None, {'images': torch.randn(1, 3, 64, 64).numpy()})
    assert boxes.shape == (len(scores), 4) and labels.max() < 10
    assert b'lora' not in out.read_bytes()
