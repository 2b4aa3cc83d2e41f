import importlib.util

import pytest
from test_requests.made_run import make_run

from mmgslora.errors import ForgettingError
from mmgslora.requests import Ledger


@pytest.fixture
def main(repo_root):
    spec = importlib.util.spec_from_file_location('ledger_tool', repo_root / 'tools/ledger.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def test_show_and_verify(tmp_path, main, capsys):
    made = make_run(tmp_path)
    head = Ledger(made.work_dir).head
    main('show', made.work_dir)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith('forgotten request 2: dog') and lines[-1] == f'Head: {head}'
    main('verify', made.work_dir, '--head', head, '--base', made.base)
    assert '3 lines as written' in capsys.readouterr().out
    with pytest.raises(ForgettingError, match='not the one that was kept'):
        main('verify', made.work_dir, '--head', '0' * 64)
    with pytest.raises(ForgettingError, match='Line 1 of .* another file than the one recorded'):
        main('verify', made.work_dir, '--base', made.work_dir / 'merged/task_01.pth')


def test_a_folder_without_one(tmp_path, main):
    with pytest.raises(ForgettingError, match='There is no .*ledger.jsonl'):
        main('show', tmp_path)
