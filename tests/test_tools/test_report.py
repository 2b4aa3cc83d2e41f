import importlib.util
import json
import subprocess
import sys

import pytest
from test_report.records import shapes_record
from test_report.runs import audit_of, make_run

from mmgslora.errors import ForgettingError

TOOL = 'tools/report.py'


@pytest.fixture
def main(repo_root):
    spec = importlib.util.spec_from_file_location('report_tool', repo_root / TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def test_report_certificates_and_signature_from_the_command_line(tmp_path, main, capsys):
    work_dir = make_run(tmp_path, shapes_record())
    (work_dir / 'audit.json').write_text(json.dumps(audit_of(shapes_record())))
    key = tmp_path / 'key.pem'
    main('--make-key', key)
    assert f'{key}.pub' in capsys.readouterr().out

    main(work_dir, '--sign', key)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 3 and 'Hidden, not forgotten' in printed
    page = (work_dir / 'report.html').read_text()
    assert 'signed (Ed25519)' in page and 'Hidden, not forgotten' in page

    certificate = work_dir / 'certificates' / 'task_02.json'
    assert json.loads(certificate.read_text())['classes'] == ['star']
    main('--verify', certificate, '--key', f'{key}.pub')
    assert 'the signature is valid' in capsys.readouterr().out

    signed = certificate.read_text()
    main(work_dir)
    assert 'replace signed certificates and are not signed' in capsys.readouterr().out
    main(work_dir)
    assert 'signed' not in capsys.readouterr().out
    certificate.write_text(signed.replace('"failed"', '"passed"', 1))
    checked = subprocess.run(
        [sys.executable, TOOL, '--verify', certificate], capture_output=True, text=True
    )
    assert checked.returncode == 1
    assert checked.stderr.strip() == (
        f"error: '{certificate}' was changed after it was signed, or was signed with another key."
    )


def test_requests_may_come_from_another_config(tmp_path, main):
    work_dir = make_run(tmp_path, shapes_record())
    (tmp_path / 'who.py').write_text("requests = [dict(requested_by='Ann')]")
    main(work_dir, '--config', tmp_path / 'who.py')
    certificate = json.loads((work_dir / 'certificates' / 'task_01.json').read_text())
    assert certificate['request']['requested_by'] == 'Ann'
    assert certificate['files']['original']['path'] == 'original.pth'


def test_a_config_that_cannot_be_read_is_named(tmp_path, main):
    work_dir = make_run(tmp_path, shapes_record())
    (tmp_path / 'who.py').write_text('requests = [')
    with pytest.raises(ForgettingError, match="who.py' cannot be read"):
        main(work_dir, '--config', tmp_path / 'who.py')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'give one of WORK_DIR, --make-key KEYFILE and'),
        (['run', '--make-key', 'key'], 'give one of WORK_DIR, --make-key KEYFILE and'),
        (['run', '--key', 'key.pub'], '--key needs --verify CERTIFICATE; --sign KEYFILE signs'),
        (['--verify', 'task_01.json', '--sign', 'key'], '--sign and --config need WORK_DIR'),
    ],
)
def test_one_thing_at_a_time(main, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(*arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('forgetting.json', None, 'has no forgetting.json'),
        ('forgetting.json', '{"tasks": [', "forgetting.json' cannot be read as JSON"),
        ('forgetting.json', '[]', 'it must hold a JSON object'),
        ('forgetting.json', '{"tasks": []}', 'no finished forgetting task'),
        ('audit.json', 'nonsense', "audit.json' cannot be read as JSON"),
        (
            'audit.json',
            '{"rows": [{"model": "unlearned"}]}',
            'must have a model, a measure and a value',
        ),
    ],
)
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path, main, name, content, message):
    work_dir = make_run(tmp_path, shapes_record())
    (work_dir / name).unlink(missing_ok=True)
    if content is not None:
        (work_dir / name).write_text(content)
    with pytest.raises(ForgettingError, match=message):
        main(work_dir)
    assert not (work_dir / 'report.html').exists()
