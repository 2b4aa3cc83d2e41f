"""Who holds a work_dir, and what a copied or killed one goes on from."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmgslora.preflight.plan import Plan
from mmgslora.preflight.resume import checkpoints_in
from mmgslora.preflight.work_dir import LOCK, disk_space, hold, release

MADE = dict(tasks=[], settings={}, missing=[], classes=[])


@pytest.fixture
def held(command):
    """A work_dir with a lock file; what it says can be changed."""
    folder = command().work_dir
    hold(folder, MADE)

    def change(**values):
        content = json.loads((folder / LOCK).read_text())
        (folder / LOCK).write_text(json.dumps(content | values))

    return change


def test_a_process_holds_and_releases_its_own_work_dir(tmp_path):
    (tmp_path / 'merged').mkdir()
    (tmp_path / 'requests/task_01').mkdir(parents=True)
    left = [tmp_path / f'merged/.task_01.{"a" * 32}.pth', tmp_path / '.epoch_2.pth']
    left.append(tmp_path / f'requests/task_01/.config.{"a" * 32}.py')
    kept = [tmp_path / '.hidden', tmp_path / 'merged/task_01.pth']
    for file in left + kept:
        file.touch()
    hold(tmp_path, MADE)
    content = json.loads((tmp_path / LOCK).read_text())
    assert (content['pid'], content['host']) == (os.getpid(), socket.gethostname())
    assert not any(file.exists() for file in left) and all(file.exists() for file in kept)
    release(tmp_path)
    assert not (tmp_path / LOCK).exists()


@pytest.fixture
def other():
    """Number and beginning of a process that lives until the test ends it."""
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    stat = Path(f'/proc/{process.pid}/stat').read_text()
    yield process, stat.rpartition(')')[2].split()[19]
    process.communicate()


def test_another_process_is_named_while_it_lives(command, held, other):
    process, began = other
    held(pid=process.pid, began=began)
    result = command()
    assert result.code == 1 and f'Process {process.pid} on ' in result.err
    held(pid=process.pid, began='1')  # its number was given to this one
    assert command().code == 0
    held(pid=process.pid, began=began)
    process.communicate()
    assert command().code == 0


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='no /proc')
def test_a_killed_process_that_nobody_asked_after_holds_nothing(command, held, other):
    process, began = other
    held(pid=process.pid, began=began)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # and is not reaped
    assert Path(f'/proc/{process.pid}/stat').exists()
    assert command().code == 0


def test_a_run_that_ends_while_another_one_looks_has_been_writing(
    command, held, cfg, monkeypatch, other
):
    """What was read of its folder until then may be of before its last checkpoint."""
    folder, dataset = command().work_dir, Plan.dataset
    process, began = other
    held(pid=process.pid, began=began)

    def late(plan, split):
        (folder / LOCK).unlink(missing_ok=True)
        return dataset(plan, split)

    monkeypatch.setattr(Plan, 'dataset', late)
    result = command('--resume')
    assert result.code == 1 and result.err.count('error: ') == 1
    assert f'Process {process.pid} on ' in result.err


def test_a_process_of_another_machine_may_live(command, held):
    held(host='elsewhere')
    result = command()
    assert result.code == 1 and 'on elsewhere is writing to' in result.err
    assert f"delete '{LOCK}'" in result.err


@pytest.mark.parametrize(('rank', 'code'), [('0', 1), ('1', 0)])
def test_only_the_first_of_several_processes_asks_who_holds_it(
    command, held, monkeypatch, cfg, rank, code
):
    """The others would find the first one."""
    held(host='elsewhere')
    monkeypatch.setenv('RANK', rank)
    assert command().code == 1  # not of a launcher
    cfg.launcher = 'pytorch'
    assert command().code == code


def test_a_lock_that_is_none(command, held):
    (command().work_dir / LOCK).write_text('{')
    assert command().code == 0


def test_the_latest_checkpoint_is_that_of_the_folder(tmp_path):
    for name in ('epoch_2.pth', 'epoch_10.pth', '.epoch_11.pth', 'best.pth', 'epoch_12.pth.tmp'):
        (tmp_path / name).touch()
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    assert [file.name for file in checkpoints_in(tmp_path)] == ['epoch_10.pth', 'epoch_2.pth']


def test_a_run_that_was_killed_before_its_first_checkpoint(command, held, cfg):
    """--resume starts it again; without, or with other settings, nothing is overwritten."""
    folder = command().work_dir
    (folder / 'merged').mkdir()
    (folder / 'merged/task_01.pth').touch()
    assert 'killed before its first checkpoint, so start it again with --resume' in command().err
    result = command('--resume')
    assert result.code == 1 and 'The run to resume has the classes' in result.err
    (folder / LOCK).unlink()
    result = command('--resume')
    assert result.code == 1 and 'it has no checkpoint to resume' in result.err


@pytest.mark.parametrize(
    ('seal', 'saving', 'files'),
    [
        (False, dict(max_keep_ckpts=2), 2 + 2 + 1),
        (True, dict(max_keep_ckpts=2), 4 + 2 + 1),
        (False, dict(), 2 + 6 + 1),
        (False, dict(max_keep_ckpts=9), 2 + 6 + 1),
        (False, dict(interval=2, max_keep_ckpts=-1), 2 + 3 + 1),
    ],
)
def test_the_disk_must_hold_every_file_of_the_run(tmp_path, monkeypatch, seal, saving, files):
    """Two tasks of three epochs: models, checkpoints that are kept, and one more while it is."""
    plan = SimpleNamespace(
        model=SimpleNamespace(plain_model=torch.nn.Linear(24, 10)),  # 250 numbers, 1000 bytes
        plain=dict(
            train_cfg=dict(epochs_per_task=3, seal=seal),
            default_hooks=dict(checkpoint=saving),
        ),
        protocol=[1, 2],
        work_dir=tmp_path,
    )
    usage = shutil.disk_usage('.')
    for free, fits in ((files * 1000, True), (files * 1000 - 1, False)):
        left = usage._replace(free=free)
        monkeypatch.setattr(shutil, 'disk_usage', lambda _, left=left: left)
        assert (not list(disk_space(plan))) == fits
