"""Killed at any write, a run goes on to the same weights and the same record.

A kill leaves what is on the disk. So one run is enough: before each of its operations on a file
the work_dir is copied, as a kill at that moment would leave it, and every copy is resumed. Nothing
depends on timing.
"""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.logging import MessageHub
from mmengine.runner import Runner

from mmgslora.preflight import prepare
from mmgslora.preflight.resume import checkpoints_in, resume_in
from mmgslora.preflight.work_dir import LOCK

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
OPERATIONS = ('open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir')


class Camera:
    """Copies a work_dir before every operation that changes a file in it."""

    def __init__(self, work_dir, album):
        self.work_dir, self.album = Path(work_dir), Path(album)
        self.running, self.shots = False, []
        sys.addaudithook(self.watch)  # cannot be taken back, only be told to rest

    def watch(self, event, arguments):
        if not self.running or event not in OPERATIONS:
            return
        target = arguments[1] if event == 'os.rename' else arguments[0]
        if event == 'open' and not arguments[2] & WRITES:
            return
        if not isinstance(target, (str, Path)) or self.work_dir not in Path(target).parents:
            return
        self.running = False
        self.shoot(event, Path(target).relative_to(self.work_dir))
        self.running = True

    def shoot(self, event, target):
        shot = self.album / f'{len(self.shots):03d}'
        shutil.copytree(self.work_dir, shot)
        if event == 'open':  # killed between the opening of a file, which empties it, and its close
            (shot / target).parent.mkdir(exist_ok=True)
            (shot / target).write_bytes(b'')
        for draft in shot.rglob('.*'):
            if draft.is_file():  # half written
                os.truncate(draft, draft.stat().st_size // 2)
        self.shots.append(f'{event} {target}')


def train(cfg, restart=False):
    cfg = copy.deepcopy(cfg)
    prepare(cfg, restart)
    Runner.from_cfg(cfg).train()


def resume(cfg, work_dir):
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.experiment_name = str(work_dir), f'kill_{work_dir.name}'
    train(cfg, resume_in(cfg, 'auto'))


def numbers(work_dir):
    record = json.loads((work_dir / 'forgetting.json').read_text())
    for task in record['tasks']:
        for key in ('train_seconds', 'eval_seconds', 'prepare_seconds'):
            del task[key]
        del task['merged']['sha256']  # of the file, in which MMEngine's config has the folder
    return record['pretrained'], record['tasks']


def weights(work_dir):
    files = sorted((work_dir / 'merged').glob('*.pth'))
    return {file.name: torch.load(file)['state_dict'] for file in files}


@pytest.fixture(scope='module')
def killed(tiny_cfg, tiny_checkpoint, tmp_path_factory, pictures):
    """A config, the work_dir of the whole run, and a copy of it before each operation."""
    folder = tmp_path_factory.mktemp('kill')
    cfg = copy.deepcopy(tiny_cfg)
    cfg.update(load_from=str(tiny_checkpoint), work_dir=str(folder / 'run'))
    cfg.experiment_name = 'kill'
    cfg.model.method = dict(type='GSLoRAPlusPlus', prototypes='embeddings')  # it has a file
    cfg.train_cfg.protocol.tasks = [['circle'], ['star']]
    cfg.train_cfg.epochs_per_task = 1
    cfg.train_dataloader.dataset.data_ratio = 0.1
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'ImageHook']
    (folder / 'album').mkdir()
    camera = Camera(cfg.work_dir, folder / 'album')
    camera.running = True
    with pictures():
        train(cfg)
    camera.running = False
    return cfg, Path(cfg.work_dir), camera


def test_every_file_that_matters_is_written_whole(killed):
    """No operation opens the final name of a result: it comes by a rename."""
    _, work_dir, camera = killed
    opened = {shot.split()[1] for shot in camera.shots if shot.startswith('open ')}
    results = {str(path.relative_to(work_dir)) for path in results_in(work_dir)}
    assert len(results) == 1 + 2 + 6 + 4 and not opened & results
    assert not (work_dir / LOCK).exists() and not list(work_dir.rglob('.*'))


def test_there_is_never_less_than_one_good_checkpoint(killed):
    _, _, camera = killed
    had = False
    for number in range(len(camera.shots)):
        found = checkpoints_in(camera.album / f'{number:03d}')
        assert found or not had
        had = had or bool(found)
        for file in found:
            assert 'message_hub' in torch.load(file)
    assert had


def results_in(work_dir):
    kinds = ('*.pth', 'merged/*', 'adapters/*/*', '*.jsonl', 'forgetting.json', 'last_*')
    kinds += ('prototypes.*',)
    return [path for kind in kinds for path in work_dir.glob(kind) if path.name[0] != '.']


def states(camera):
    """One copy of each state that a resumed run can tell apart: logs and drafts are not read."""
    seen = {}
    for number in range(len(camera.shots)):
        folder = camera.album / f'{number:03d}'
        content = sorted((str(p), p.stat().st_mtime_ns) for p in results_in(folder))
        content = [(name.removeprefix(str(folder)), time) for name, time in content]
        seen.setdefault(str([content, (folder / LOCK).exists()]), folder)
    return list(seen.values())


def test_every_kill_is_survived(killed):
    cfg, whole, camera = killed
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    found = states(camera)
    assert len(found) >= 8
    for folder in found:
        lock = folder / LOCK
        if lock.exists():  # of a process that is no more
            lock.write_text(json.dumps(json.loads(lock.read_text()) | dict(pid=dead.pid)))
        MessageHub.get_instance(f'before {folder.name}')
        resume(cfg, folder)
        shot = camera.shots[int(folder.name)]
        assert numbers(folder) == numbers(whole), shot
        expected, after = weights(whole), weights(folder)
        assert after.keys() == expected.keys() and len(after) == 2
        for name, state in expected.items():
            assert all(torch.equal(value, after[name][key]) for key, value in state.items()), shot
        assert not list(folder.rglob('.*')) and not lock.exists(), shot


def test_a_full_disk_costs_what_was_being_written(killed, tools, tmp_path, monkeypatch, capsys):
    """The second training checkpoint does not fit; with room again the run ends as it would."""
    cfg, whole, _ = killed
    cfg = copy.deepcopy(cfg)
    cfg.experiment_name = 'full'
    cfg.dump(tmp_path / 'config.py')
    command = [str(tmp_path / 'config.py'), '--work-dir', str(tmp_path / 'run')]
    put = LocalBackend.put

    def full(backend, content, path):
        if 'epoch_2' not in str(path):
            return put(backend, content, path)
        put(backend, content[: len(content) // 2], path)
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, 'put', full)
        with pytest.raises(SystemExit) as end:
            tools['train'](command)
    said = capsys.readouterr().err
    assert end.value.code == 1 and "No space left on device: '" in said and "epoch_2.pth'" in said
    assert 'epoch_1.pth is saved' in said and '--resume' in said and 'Traceback' not in said
    assert [file.name for file in checkpoints_in(tmp_path / 'run')] == ['epoch_1.pth']
    assert not [draft for draft in (tmp_path / 'run').rglob('.*') if draft.name != LOCK]
    # A name of its own: MMEngine names the hub after it and the second, which may be the same one.
    tools['train']([*command, '--resume', '--cfg-options', 'experiment_name=room_again'])
    assert numbers(tmp_path / 'run') == numbers(whole)
    expected, after = weights(whole), weights(tmp_path / 'run')
    assert all(torch.equal(v, after[n][k]) for n, s in expected.items() for k, v in s.items())
