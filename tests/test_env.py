import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mmgslora import compat, env

REPOSITORY = Path(env.__file__).parents[1]

WORKING = {
    'python': '3.10.14',
    'torch': '2.1.2+cu118',
    'torchvision': '0.16.2+cu118',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmengine': '0.10.7',
    'numpy': '1.26.4',
    'setuptools': '69.5.1',
}


def machine(changes=(), **facts):
    versions = {**WORKING, **dict(changes)}
    return env.Environment(
        versions={name: text for name, text in versions.items() if text}, **facts
    )


def test_the_set_that_users_report_as_working_has_no_known_issue():
    assert env.known_issues(machine()) == []


# Each row: a machine one step away from the working set, and words of the only known issue it has.
LITE = {'mmcv': None, 'mmcv-lite': '2.1.0'}
ONE_STEP = [
    (machine({'mmcv': '2.2.0'}), 'mmdet 3.3'),
    (machine({'mmcv': None, 'mmcv-lite': '2.2.0'}), 'mmdet 3.3'),
    (machine({'mmcv-lite': '2.1.0'}), 'both mmcv and mmcv-lite'),
    (machine(LITE, compiled_mmcv=False), 'without compiled'),
    (
        machine({'numpy': '2.0.1'}, mmcv_error='ImportError: numpy.core failed to import'),
        'numpy 1 with numpy 2',
    ),
    (machine(mmcv_error='ImportError: undefined symbol: _ZN3c10'), 'another torch'),
    (machine(gpu='Some GPU', mmcv_cuda='not available'), 'without CUDA'),
    (machine(torchvision_error='RuntimeError: no operator torchvision::nms'), 'torchvision'),
    (machine({'torch': '2.6.0'}), 'safe loading'),
    (machine({'torch': '2.10.0'}), 'safe loading'),  # ten is more than six
    (machine({'setuptools': '82.0.1'}, pkg_resources=False), 'pkg_resources'),
    (machine({'setuptools': None}, pkg_resources=False), 'pkg_resources'),
    (
        machine({'torch': '2.5.1', 'mmengine': '0.10.5', 'transformers': '4.46.0'}),
        'Adafactor',
    ),
    (machine({'mmpretrain': '1.2.0', 'transformers': '4.52.4'}), 'mmpretrain'),
]


@pytest.mark.parametrize(('there', 'words'), ONE_STEP, ids=[words for _, words in ONE_STEP])
def test_one_step_from_the_working_set(there, words):
    (issue,) = env.known_issues(there)
    assert words in issue.name
    assert issue.fix in ' '.join(env.report(there).split())


def test_every_known_issue_has_a_machine_above():
    assert {issue.name for there, _ in ONE_STEP for issue in env.known_issues(there)} == {
        issue.name for issue in env.KNOWN_ISSUES
    }


@pytest.mark.parametrize(
    'there',
    [
        machine({'mmcv': '2.2.0', 'mmdet': '3.4.0'}),
        machine({'numpy': '2.0.1'}),
        machine(gpu='Some GPU', mmcv_cuda='11.8'),
        machine(mmcv_cuda='not available'),
        machine({'torch': '2.5.1'}),
        machine({'torch': '2.6.0', 'mmengine': '0.11.0'}),
        machine({'mmengine': '0.11.0', 'setuptools': '82.0.1'}, pkg_resources=False),
        machine({'torch': '2.5.1', 'mmengine': '0.10.6', 'transformers': '4.46.0'}),
        machine({'torch': '2.4.1', 'mmengine': '0.10.5', 'transformers': '4.46.0'}),
        machine({'torch': '2.5.1', 'mmengine': '0.10.5'}),
        machine({'mmpretrain': '1.2.0', 'transformers': '4.51.3'}),
        machine({'mmpretrain': '1.2.0'}),
        machine({'transformers': '5.23.0'}),
        env.Environment(versions={'python': '3.9.0'}, compiled_mmcv=False, pkg_resources=False),
    ],
)
def test_just_beside_a_known_issue(there):
    assert env.known_issues(there) == []


@pytest.mark.parametrize(
    ('there', 'code'),
    [
        (machine(), 0),
        (machine({**LITE, 'torch': '2.14.1'}, compiled_mmcv=False), 0),
        (machine({'torch': '2.14.1'}, pkg_resources=False), 1),
    ],
)
def test_exit_code_tells_of_issues_that_are_not_handled(monkeypatch, capsys, there, code):
    monkeypatch.setattr(env, 'this_environment', lambda: there)
    assert env.main() == code
    assert ('TO DO' in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(
    ('there', 'path'),
    [
        (machine(gpu='Some GPU'), 'compiled CUDA operator'),
        (machine(LITE, gpu='Some GPU', compiled_mmcv=False), 'PyTorch path on GPU'),
        (machine(), 'PyTorch path on CPU'),
        (machine({'mmcv': None}, gpu='Some GPU'), 'none, mmcv is not installed'),
    ],
)
def test_attention_path(there, path):
    assert env.attention_path(there) == path
    assert path in env.report(there)


def test_what_a_broken_package_said_is_in_the_report():
    there = machine(mmcv_error='ImportError: symbol', torchvision_error='RuntimeError: nms')
    assert env.report(there).endswith(
        'mmcv said: ImportError: symbol\n\ntorchvision said: RuntimeError: nms'
    )


def test_versions_are_those_of_the_installed_distributions():
    found = env.versions()
    assert sys.version.startswith(found['python'])
    for name in ('torch', 'mmdet', 'mmengine', 'numpy', 'pycocotools'):
        assert found[name] == version(name)
    assert all(isinstance(text, str) for text in found.values())


def test_this_environment_reports_a_torchvision_without_operators(monkeypatch):
    def fail(*args):
        raise RuntimeError('operator torchvision::nms does not exist')

    monkeypatch.setattr('torchvision.ops.nms', fail)
    there = env.this_environment()
    assert there.torchvision_error == 'RuntimeError: operator torchvision::nms does not exist'
    assert there.compiled_mmcv == compat.has_compiled_mmcv()
    assert there.versions == env.versions()
    assert there.system['sys.platform'] == sys.platform and 'GCC' in there.system
    assert not any('PyTorch' in name or 'GPU' in name for name in there.system)
    assert f'sys.platform                    {sys.platform}' in env.report(there)


def test_this_environment_reports_compiled_operators_that_do_not_load(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').write_text('')
    (tmp_path / 'mmcv/_ext.py').write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    result = run('-m', 'mmgslora.env', path=[tmp_path, REPOSITORY])
    assert result.returncode == 1
    assert 'TO DO    a compiled mmcv that does not load' in result.stdout
    assert result.stdout.rstrip().endswith('mmcv said: ImportError: undefined symbol: _ZN3c10')


def test_command_line_where_nothing_is_installed():
    result = run('-S', '-m', 'mmgslora.env', path=[REPOSITORY])  # -S: no site-packages
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    for name in ('torch', 'mmcv', 'mmdet', 'mmengine'):
        assert [name, 'not', 'installed'] in lines
    assert ['GPU', 'none'] in lines


def run(*arguments, path):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )
