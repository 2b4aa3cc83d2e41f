"""The command lines as a user runs them, in processes of their own where that matters."""

import copy
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

MMDET_TRAIN = Path(find_spec('mmdet').submodule_search_locations[0], '.mim/tools/train.py')


@pytest.fixture
def run(start, run_cfg, tmp_path):
    """Runs a tool on the tiny config, dumped to a file, in a process that has all imports done."""

    def run(*arguments, script='tools/train.py', check=False, whole=False):
        config = tmp_path / 'config.py'
        run_cfg.dump(config)
        result = start(script, config, *arguments, whole=whole)
        if check:
            assert result.returncode == 0, result.stderr[-3000:]
        return result

    return run


@pytest.fixture
def call(tools, run_cfg, tmp_path, capsys):
    """Calls a tool in this process instead."""

    def call(*arguments, name='train'):
        config = tmp_path / 'config.py'
        run_cfg.dump(config)
        code = 0
        try:
            tools[name]([str(config), *arguments])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=printed.out, stderr=printed.err)

    return call


@pytest.fixture(scope='module')
def served(start, tiny_cfg, tiny_checkpoint, tmp_path_factory):
    """The work_dir of one whole run by the tool; only to be read."""
    folder = tmp_path_factory.mktemp('served')
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from, cfg.experiment_name = str(tiny_checkpoint), 'served'
    cfg.dump(folder / 'config.py')
    command = ('tools/train.py', folder / 'config.py', '--work-dir', folder / 'run')
    result = start(*command, whole=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / 'run'


def numbers(work_dir):
    """What a run must reproduce: everything in forgetting.json but times and versions."""
    record = json.loads(Path(work_dir, 'forgetting.json').read_text())
    for task in record['tasks']:
        for key in ('train_seconds', 'eval_seconds', 'prepare_seconds'):
            task.pop(key, None)
    return record['pretrained'], record['tasks']


def test_killed_in_task_two_and_resumed(run, run_cfg, served, tmp_path):
    pretrained, tasks = numbers(served)
    steps = [task['steps'] for task in tasks]
    kill = dict(
        type='KillHook', after_iter=steps[0] + steps[1] // 2 + 1, flag=str(tmp_path / 'killed')
    )
    run_cfg.custom_imports = dict(imports=['mmgslora.register', 'kill_hook'])
    run_cfg.custom_hooks.append(kill)
    broken = tmp_path / 'broken'
    assert run('--work-dir', str(broken), whole=True).returncode == -signal.SIGKILL
    assert len(numbers(broken)[1]) == 1
    run('--work-dir', str(broken), '--resume', check=True, whole=True)
    assert numbers(broken) == (pretrained, tasks)
    record = json.loads((broken / 'forgetting.json').read_text())
    assert record['original'] == run_cfg.load_from
    for task in ('task_01', 'task_02'):
        a, b = (
            torch.load(folder / f'merged/{task}.pth')['state_dict'] for folder in (served, broken)
        )
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_mmdetections_own_train_script(run_cfg, served, tmp_path, repo_root):
    """What the config imports is all that it knows of this package."""
    run_cfg.dump(tmp_path / 'config.py')
    threads = dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE')
    result = subprocess.run(
        [sys.executable, MMDET_TRAIN, 'config.py', '--work-dir', 'theirs'],
        cwd=tmp_path,
        env=os.environ | threads | dict(PYTHONPATH=str(repo_root)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert numbers(served) == numbers(tmp_path / 'theirs')


def test_merged_checkpoint_in_plain_mmdetection(served, run_cfg, tmp_path, repo_root):
    """Only mmgslora.compat is imported; detections equal those of the wrapped model."""
    script = tmp_path / 'plain.py'
    script.write_text(
        'import sys, glob, torch\n'
        'from mmdet.apis import DetInferencer\n'
        'out = {}\n'
        'model = DetInferencer(weights=sys.argv[1], device="cpu", show_progress=False)\n'
        'for path in sorted(glob.glob(sys.argv[2])):\n'
        '    found = model(path, return_datasamples=True)["predictions"][0].pred_instances\n'
        '    out[path] = (found.scores, found.bboxes, found.labels)\n'
        'torch.save(out, sys.argv[3])\n'
        'assert not any(m.startswith("mmgslora.") and m not in '
        '("mmgslora.compat", "mmgslora.loading", "mmgslora.errors") for m in sys.modules)\n'
    )
    merged, out = served / 'merged/task_02.pth', tmp_path / 'found.pth'
    root = run_cfg.val_dataloader.dataset.data_root
    result = subprocess.run(
        [sys.executable, '-m', 'mmgslora.compat', script, merged, f'{root}val/*.png', out],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]

    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, MODELS

    wrapped = MODELS.build(copy.deepcopy(run_cfg.model)).eval()
    checkpoint = sorted(served.glob('epoch_*.pth'))[-1]
    wrapped.load_state_dict(torch.load(checkpoint)['state_dict'])
    dataset = DATASETS.build(run_cfg.val_dataloader.dataset)
    found = torch.load(out)
    assert len(found) == len(dataset) == 12
    for item in dataset:
        path = item['data_samples'].img_path
        with torch.no_grad():
            ours = wrapped.test_step(pseudo_collate([item]))[0].pred_instances
        scores, boxes, labels = found[path]
        assert len(scores) and (ours.scores - scores).abs().max() < 1e-4
        assert (ours.bboxes - boxes).abs().max() < 1e-2
        assert torch.equal(ours.labels, labels)


def test_test_tool_regroups_by_task(call, run_cfg, served, tmp_path):
    shutil.copytree(served, tmp_path / 'run')
    _, tasks = numbers(tmp_path / 'run')
    run_cfg.log_level = 'INFO'
    run_cfg.work_dir, run_cfg.resume = str(tmp_path / 'run'), True  # as after --resume
    of_run = (tmp_path / 'run/config.py').read_text()
    for number, task in enumerate(tasks, 1):
        merged = str(tmp_path / f'run/merged/task_0{number}.pth')
        result = call(merged, f'--task={number}', name='test')
        assert result.returncode == 0
        for key in ('AP_f', 'AP_r'):
            assert f'{key}: {task["metrics"][key]:.4f}' in result.stdout
    assert (tmp_path / 'run/config.py').read_text() == of_run
    assert (tmp_path / 'run/test/config.py').exists()
    assert not (tmp_path / 'run/test/adapters').exists()


def test_mmdetections_test_script_and_its_result_file(run, call, served, tmp_path):
    """MMDetection's tools/test.py on the merged file; --forget-eval regroups what it writes."""
    from mmengine.config import Config

    task = numbers(served)[1][1]
    merged, results = str(served / 'merged/task_02.pth'), str(tmp_path / 'results.pkl')
    plain = Config.fromstring(torch.load(merged)['meta']['cfg'], '.py')
    plain.work_dir = str(tmp_path / 'plain')
    config = tmp_path / 'plain.py'
    plain.dump(config)
    script = str(MMDET_TRAIN.with_name('test.py'))
    result = subprocess.run(
        [sys.executable, '-m', 'mmgslora.compat', script, config, merged, '--out', results],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    result = run(results, '--forget-eval', script='tools/test.py', check=True)
    for key in ('AP_f', 'AP_r', 'AP_o'):
        assert f'{key}: {task["metrics"][key]:.4f}' in result.stdout
    wrong = call(str(tmp_path / 'no.pkl'), '--forget-eval', name='test')
    assert wrong.returncode == 1 and "no.pkl' does not exist" in wrong.stderr


def test_bad_input_is_one_sentence(run, tmp_path):
    """All others: tests/test_preflight/test_mistakes.py, without a process each."""
    options = ('train_cfg.protocol.tasks=[[cirle]]', 'load_from=nowhere.pth')
    result = run('--work-dir', str(tmp_path / 'run'), '--cfg-options', *options)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(said) == 2 and "'nowhere.pth' does not exist" in said[0]
    assert "Class 'cirle' in task 1 is unknown; did you mean 'circle'?" in said[1]
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_says_how_to_go_on(run, call, run_cfg, tmp_path, number, code):
    """One line, and no traceback: what is saved, and the command."""
    stop = dict(type='KillHook', after_iter=1, flag=str(tmp_path / 'stopped'), number=int(number))
    run_cfg.custom_imports = dict(imports=['mmgslora.register', 'kill_hook'])
    run_cfg.custom_hooks.append(stop)
    options = ('--cfg-options', 'train_cfg.seal=True')  # not to be lost on the way
    result = run('--work-dir', str(tmp_path / 'run'), *options)
    assert result.returncode == code and 'Traceback' not in result.stderr
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith(
        'Stopped. No checkpoint was saved yet; go on with: python tools/train.py'
    )
    assert last.endswith(f'--work-dir {tmp_path}/run --cfg-options train_cfg.seal=True --resume')
    assert call('--work-dir', str(tmp_path / 'run'), '--resume').returncode == 0


@pytest.mark.parametrize(('more', 'end'), [([], ', and --resume'), (['--resume'], '')])
def test_one_of_several_processes_does_not_say_its_own_command(repo_root, tmp_path, more, end):
    """Without torchrun, which started it, that command would find no other process."""
    tool = runpy.run_path(str(repo_root / 'tools/train.py'))
    args = tool['parse_args'](['config.py', '--launcher', 'pytorch', *more])
    (tmp_path / 'epoch_3.pth').touch()
    said = tool['how_to_go_on'](Config(dict(work_dir=str(tmp_path))), args)
    assert said == (
        f'Stopped. {tmp_path}/epoch_3.pth is saved; go on with the command that started all '
        f'processes{end}'
    )


def test_a_run_that_has_not_begun_has_nothing_to_go_on_with(repo_root, tmp_path):
    """A wrong setting of a plain training, say: the same command with --resume fails, too."""
    tool = runpy.run_path(str(repo_root / 'tools/train.py'))
    args, cfg = tool['parse_args'](['config.py']), Config(dict(work_dir=str(tmp_path)))
    error = TypeError('no max_epoch')
    assert tool['what_happened'](error, cfg, args) == [
        'TypeError: no max_epoch (--debug shows where).'
    ]
    (tmp_path / 'run.lock').touch()  # a forgetting run that had begun
    assert tool['what_happened'](error, cfg, args)[1].startswith('Stopped. No checkpoint was saved')


def test_a_refused_command_leaves_a_finished_run_as_it_was(call, tmp_path):
    """Not even the config is written: report and audit read the finished run's."""
    work_dir = tmp_path / 'run'
    (work_dir / 'merged').mkdir(parents=True)
    (work_dir / 'config.py').write_text('# of the finished run')
    (work_dir / 'merged/task_01.pth').write_bytes(b'')
    before = sorted(work_dir.rglob('*'))
    result = call('--work-dir', str(work_dir))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and 'already holds a forgetting run (task_01)' in last
    assert '--work-dir' in last and 'Traceback' not in result.stderr
    assert sorted(work_dir.rglob('*')) == before
    assert (work_dir / 'config.py').read_text() == '# of the finished run'


def test_the_next_request_is_one_command(call, served, tmp_path):
    """Weeks later, on a copy: the config as it was, one more class."""
    pretrained, tasks = numbers(served)
    shutil.copytree(served, tmp_path / 'copy')
    command = ('--continue-from', str(tmp_path / 'copy'), '--forget', 'heart')
    assert call(*command).returncode == 0
    assert numbers(tmp_path / 'copy') == (pretrained, [*tasks, numbers(tmp_path / 'copy')[1][2]])
    last = numbers(tmp_path / 'copy')[1][2]
    assert last['forget'] == ['heart'] and last['old'] == ['circle', 'square', 'star']
    again = call(*command)
    assert again.returncode == 1
    assert "error: Class 'heart' was forgotten by request 3 already" in again.stderr
    both = call(*command, '--work-dir', str(tmp_path / 'other'))
    assert both.returncode == 2 and 'leave --work-dir' in both.stderr
