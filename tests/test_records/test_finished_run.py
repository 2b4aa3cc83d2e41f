"""What a stranger's work_dir can and cannot make a report say."""

import json
from hashlib import sha256

import pytest
from test_report.records import shapes_record
from test_report.runs import ABC, audit_of, make_run, with_units

from mmgslora.records.finished_run import FinishedRun
from mmgslora.report import charts
from mmgslora.report.certificate import certificates_of
from mmgslora.report.page import report_page


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    monkeypatch.setattr(charts, 'as_svg', lambda figure: 'data:,')  # they take most of the time


SECRET = sha256(b'secret').hexdigest()


def audited(tmp_path, audit, **said):
    work_dir = make_run(tmp_path, dict(shapes_record(), **said))
    (work_dir / 'audit.json').write_text(json.dumps(audit))
    return FinishedRun(work_dir)


@pytest.mark.parametrize('absolute', [True, False])
def test_no_file_outside_the_work_dir_is_hashed(tmp_path, absolute):
    (tmp_path / 'secret').write_bytes(b'secret')
    path = str(tmp_path / 'secret') if absolute else '../secret'
    run = FinishedRun(make_run(tmp_path, dict(shapes_record(), original=path)))
    assert run.original_file == dict(path=path, sha256=None)
    assert SECRET not in json.dumps(certificates_of(run)) + report_page(run)


def test_the_hash_of_the_original_is_the_one_that_the_run_recorded(tmp_path):
    record = dict(shapes_record(), original='/somewhere/a.pth', original_sha256=ABC)
    run = FinishedRun(make_run(tmp_path, record))
    assert certificates_of(run)[0]['files']['original'] == dict(path='/somewhere/a.pth', sha256=ABC)


def test_an_audit_with_another_original_does_not_count(tmp_path):
    audit = audit_of(shapes_record())
    audit['files']['original'] = dict(path='original.pth', sha256='0' * 64)
    run = audited(tmp_path, with_units(audit), original_sha256=ABC)
    assert (
        run.audit_reason(run.tasks[-1])
        == 'audit.json was made with another original than original.pth'
    )
    audit['files']['original']['sha256'] = ABC
    assert not audited(tmp_path / 'b', with_units(audit), original_sha256=ABC).audit_reason(
        run.tasks[-1]
    )


def test_an_audit_on_the_other_split_does_not_count(tmp_path):
    """What is measured on val is no evidence beside numbers of test."""
    audit = with_units(audit_of(shapes_record()), 'val')
    for name, split, reason in (('a', 'val', ''), ('b', 'test', 'measured on other files')):
        run = audited(tmp_path / name, audit, split=split)
        found = run.audit_reason(run.tasks[-1])
        assert reason in found and bool(found) == bool(reason)


def test_an_audit_of_a_file_that_was_changed_after_the_run_does_not_count(tmp_path):
    """It is of the very file that lies there; the run measured another one."""
    record = json.loads(json.dumps(shapes_record()))
    record['tasks'][-1]['merged'] = dict(path='merged/task_02.pth', sha256=ABC)
    run = audited(tmp_path, audit_of(record), tasks=record['tasks'])
    said = 'merged/task_02.pth was changed after the run had measured it'
    assert run.audit_reason(run.tasks[-1]) == said and run.unfit == {2: said}


def test_the_config_is_the_one_that_was_named_or_the_only_one(tmp_path):
    run = FinishedRun(make_run(tmp_path, dict(shapes_record(), config='configs/gone.py')))
    assert run.config_path == run.work_dir / 'forget.py'
    (run.work_dir / 'another.py').write_text('')
    assert run.config_path is None
    (run.work_dir / 'gone.py').write_text('')
    assert run.config_path == run.work_dir / 'gone.py'


def fake_row(audit):
    audit['rows'].append(dict(model='oracle', seed=0, measure='probe/decoder.2', value=99.0))


def fake_unit(audit):
    row = dict(model='oracle', seed=0, measure='localisation/forget', value=99.0)
    audit['rows'].append(dict(row, unit='localisation:oracle'))


def copied_unit(audit):
    fake_unit(audit)
    audit['units']['localisation:oracle'] = audit['units']['localisation:unlearned'] = dict(
        audit['units']['probe:oracle']
    )


def other_values(audit):
    for row in audit['rows']:
        if row['model'] == 'oracle' and row['measure'] == 'probe/decoder.2':
            row['value'] += 9


def other_oracle(audit):
    audit['files']['oracle']['sha256'] = '1' * 64


def as_oracle(audit):
    for row in audit['rows']:
        if row['unit'] == 'probe:unlearned':
            row['model'] = 'oracle'


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (fake_row, 'has a value of probe/decoder.2 (oracle) that no audit measured'),
        (fake_unit, 'has a value of localisation/forget (oracle) that no audit measured'),
        (copied_unit, 'has a value of localisation/forget that was measured on other files'),
        (other_values, 'values of probe:oracle in audit.json were changed'),
        (other_oracle, 'that was measured on other files'),
        (as_oracle, 'that was measured on other files'),
    ],
)
def test_rows_that_no_audit_measured_count_for_nothing(tmp_path, spoil, reason):
    audit = json.loads(json.dumps(audit_of(shapes_record())))
    spoil(audit)
    run = audited(tmp_path, audit)
    assert reason in run.audit_reason(run.tasks[-1])
    assert run.verdicts[-1].checks[-1]['result'] == 'not measured'
    assert reason in report_page(run)


def test_an_audit_from_before_rows_were_hashed_counts(tmp_path):
    audit = audit_of(shapes_record())
    for unit in audit['units'].values():
        del unit['rows']
    run = audited(tmp_path, audit)
    assert run.audit_reason(run.tasks[-1]) == ''


@pytest.mark.parametrize('stopped_after', [1, 2])
def test_a_run_that_was_stopped_says_so_everywhere(tmp_path, stopped_after):
    record = shapes_record()
    record['protocol']['tasks'].append(['triangle'])
    del record['tasks'][stopped_after:]
    run = FinishedRun(make_run(tmp_path, record))
    said = f'The run is unfinished: {stopped_after} of its 3 requests'
    assert report_page(run).count(said) == 2
    assert all(c['unfinished'].startswith(said) for c in certificates_of(run))
