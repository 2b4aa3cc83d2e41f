import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from test_requests.made_run import make_run

from mmgslora.errors import ForgettingError
from mmgslora.requests import Ledger, RequestSequence, revoke

TOOL = 'tools/adapters.py'


@pytest.fixture
def main(repo_root):
    spec = importlib.util.spec_from_file_location('adapters_tool', repo_root / TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture
def made(tmp_path):
    return make_run(tmp_path)


def test_show(made, main, capsys):
    main('show', made.work_dir)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if 'in force' in line]
    assert [row.split('│')[2].strip() for row in rows] == ['cat', 'dog', 'person']
    assert [row.split('│')[4].strip() for row in rows] == ['2/2', '1/2', '2/2']
    assert 'only hides a class' in ' '.join(printed.split())
    main('show', made.work_dir / 'adapters/task_02')
    printed = ' '.join(capsys.readouterr().out.split())  # a long path breaks its line
    assert 'task 2, forgets dog' in printed and 'zero' in printed
    with pytest.raises(ForgettingError, match="merged' is neither the work_dir of a run, with .*"):
        main('show', made.work_dir / 'merged')


def test_show_what_was_trained_itself(made, main, capsys):
    """Two parameters of the first task, as a Full tuner leaves them: 5 x 16 and 5 numbers."""
    folder = made.work_dir / 'adapters/task_01'
    for path in folder.iterdir():
        path.unlink()
    changed = {f'head.{part}': made.weights[1][f'head.{part}'] for part in ('weight', 'bias')}
    save_file(changed, folder / 'changed.safetensors')
    main('show', made.work_dir)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if 'cat' in line]
    assert '2 tensors, 85 numbers' in ' '.join(row.split()) and '0.000' not in row
    main('show', folder)
    printed = ' '.join(capsys.readouterr().out.replace('│', '').split())
    assert 'trained themselves (2 tensors, whole) 85' in printed


def test_merge_and_add(made, main, tmp_path):
    main('merge', made.work_dir, '--through', 1, '--out', tmp_path / 'one.pth')
    main(
        'add',
        made.work_dir / 'adapters/task_02',
        tmp_path / 'one.pth',
        '--out',
        tmp_path / 'two.pth',
    )
    state = torch.load(tmp_path / 'two.pth', weights_only=True)['state_dict']
    assert all(torch.equal(state[key], value) for key, value in made.weights[2].items())


def test_revoke_says_what_the_classes_have_again(made, main, capsys):
    for task in (1, 2):
        revoke(RequestSequence(made.work_dir), task, measure=lambda *_: {})
    main('revoke', made.work_dir, 3)
    assert capsys.readouterr().out.splitlines()[-1] == 'person: 82.00, before any forgetting 82.00'


def test_nothing_is_written_over(made, main):
    before = made.base.read_bytes()
    with pytest.raises(ForgettingError, match='exists already; give the name of a new file'):
        main('merge', made.work_dir, '--out', made.base)
    with pytest.raises(ForgettingError, match='exists already; give the name of a new file'):
        main('add', made.work_dir / 'adapters/task_01', made.base, '--out', made.base)
    assert made.base.read_bytes() == before


@pytest.mark.parametrize('through', [0, 4])
def test_merging_through_a_request_that_there_is_not(made, main, tmp_path, through):
    with pytest.raises(ForgettingError, match=f'--through is {through}; the run has .* 1, 2, 3'):
        main('merge', made.work_dir, '--through', through, '--out', tmp_path / 'none.pth')


def test_export_lists_what_must_be_destroyed(made, main, tmp_path, capsys):
    main('export', made.work_dir, '--out', tmp_path / 'out.pth', '--final')
    printed = capsys.readouterr().out
    assert 'only hides a class' in printed and 'every copy and backup' in printed
    assert '  adapters/task_03: an adapter' in printed and f'  {made.base}: the original' in printed
    entry = Ledger(made.work_dir).last('exported')
    assert entry['final'] and 'adapters/task_03' in entry['to_destroy']


def test_a_request_that_there_is_not(made, main):
    with pytest.raises(ForgettingError, match='There is no request 9'):
        main('revoke', made.work_dir, 9)
