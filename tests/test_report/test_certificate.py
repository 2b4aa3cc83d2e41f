import hashlib
import json
import math
from pathlib import Path

import pytest

from mmgslora.errors import ForgettingError
from mmgslora.records.finished_run import FinishedRun
from mmgslora.report.certificate import certificates_of, write_certificates

from .records import shapes_record
from .runs import ABC, audit_of, make_run, take_back, with_units


def certify(tmp_path, record=None, audit=None, **said):
    """A run's certificates; what its user ``said`` stands in the record."""
    work_dir = make_run(tmp_path, dict(record or shapes_record(), **said))
    if audit:
        (work_dir / 'audit.json').write_text(json.dumps(audit))
    run = FinishedRun(work_dir)
    return run, certificates_of(run)


LAST = hashlib.sha256(b'last').hexdigest()


def file(sha256):
    return dict(path='x.pth', sha256=sha256)


def check(certificate, threshold, which=0):
    return [c for c in certificate['checks'] if c['threshold'] == threshold][which]


def test_it_says_what_was_asked_and_which_files_it_is_about(tmp_path):
    _, (first, second) = certify(tmp_path)
    assert first['classes'] == ['circle', 'square'] and second['classes'] == ['star']
    assert first['request'] == dict.fromkeys(['requested_by', 'reason', 'reference', 'date'])
    assert first['files']['original'] == {'path': 'original.pth', 'sha256': ABC}
    assert first['files']['merged'] == {'path': 'merged/task_01.pth', 'sha256': ABC}
    assert first['files']['latest']['path'] == 'merged/task_02.pth'
    assert first['files']['latest']['sha256'] not in (None, ABC)
    assert first['files']['audit'] == {'path': None, 'sha256': None}
    assert first['per_class']['circle'] == {'before': 80.0, 'after': 1.0, 'latest': 1.0}
    assert first['per_class']['star'] == {'before': 80.0, 'after': 80.0, 'latest': 1.0}


def test_of_what_is_asked_to_go_every_query_counts_before_too(tmp_path):
    record = shapes_record()
    record['pretrained']['every_query/per_class'] = dict(circle=84.0, star=91.0, cross=99.0)
    _, (first, _) = certify(tmp_path, record)
    before = {name: values['before'] for name, values in first['per_class'].items()}
    assert (before['circle'], before['star']) == (84.0, 91.0)
    assert (before['square'], before['cross']) == (80.0, 60.0)


def test_parameters_that_were_trained_themselves_are_its_file(tmp_path):
    work_dir = make_run(tmp_path, shapes_record())
    folder = work_dir / 'adapters/task_01'
    (folder / 'adapter_model.safetensors').rename(folder / 'changed.safetensors')
    first, second = (c['files']['adapter'] for c in certificates_of(FinishedRun(work_dir)))
    assert first == {'path': 'adapters/task_01/changed.safetensors', 'sha256': ABC}
    assert second == {'path': 'adapters/task_02/adapter_model.safetensors', 'sha256': ABC}


def test_what_the_user_wrote_of_a_request_stands_in_its_certificate(tmp_path):
    requests = [None, dict(requested_by='Ann', date='2026-01-31', reference=7)]
    _, (first, second) = certify(tmp_path, requests=requests)
    assert first['request']['requested_by'] is None
    assert second['request'] == {
        'requested_by': 'Ann', 'reason': None, 'reference': '7', 'date': '2026-01-31',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('said', 'message'),
    [
        (dict(requests=[None] * 3), 'requests has 3 entries, but the run has 2 tasks'),
        (dict(requests=['Ann']), 'a list with a dict or None'),
        (
            dict(requests=[None, dict(by='Ann')]),
            "request 2 has no setting 'by'; allowed are requested_by, reason, reference, date",
        ),
        (
            dict(requests=[dict(date='31.13.2026')]),
            "date is '31.13.2026'; it can be a day of",
        ),
        (
            dict(requests=[dict(date='20260131'), dict(date='2026-W05-6')]),
            "date is '20260131'; it can be .* date is '2026-W05-6'; it can be a day of",
        ),
        (
            dict(requests=[dict(date='2026-02-30')]),
            "date is '2026-02-30'; it can be a day of",
        ),
        (dict(thresholds=dict(forgoten_max=1)), "'forgoten_max' .*allowed are forgotten_max"),
        (
            dict(thresholds=dict(forgotten_max='low')),
            "'low'; it can be a number from 0 to 100",
        ),
        (
            dict(thresholds=dict(forgotten_max=-1)),
            'max is -1; it can be a number from 0 to 100',
        ),
        (
            dict(thresholds=dict(retained_min_share=95)),
            '95; it can be a number from 0 to 1',
        ),
        (dict(thresholds=3), 'thresholds is 3'),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, said, message):
    with pytest.raises(ForgettingError, match=message):
        certify(tmp_path, **said)


# Task 1 keeps star 80, triangle 57, cross 57 and hexagon 30 of 80, 60, 60 and 60: 224 / 260.
@pytest.mark.parametrize(
    ('threshold', 'limit', 'value', 'result'),
    [
        ('forgotten_max', 1.0, 1.0, 'passed'),
        ('forgotten_max', 0.99, 1.0, 'failed'),
        ('retained_min_share', 224 / 260, 224 / 260, 'passed'),
        ('retained_min_share', 0.87, 224 / 260, 'failed'),
        ('probe_gap_max', 9.0, 9.0, 'passed'),
        ('probe_gap_max', 8.9, 9.0, 'failed'),
        ('relearning_gap_max', 20.5, 20.5, 'passed'),
        ('relearning_gap_max', 20.4, 20.5, 'failed'),
    ],
)
def test_a_value_is_held_against_its_threshold(tmp_path, threshold, limit, value, result):
    thresholds = {threshold: limit}
    _, (first, _) = certify(tmp_path, audit=audit_of(shapes_record()), thresholds=thresholds)
    found = check(first, threshold)
    assert found['value'] == pytest.approx(value)
    assert (found['limit'], found['result']) == (limit, result)
    assert first['thresholds_set_by_user'] == [threshold]


def test_the_probe_compared_is_the_one_on_the_last_layer(tmp_path):
    _, (first, _) = certify(tmp_path, audit=audit_of(shapes_record()))
    assert check(first, 'probe_gap_max')['measure'] == 'probe/decoder.2, above the oracle'
    assert check(first, 'probe_gap_max')['model'] == 'merged/task_02.pth'
    measures = first['audit']['measures']
    assert measures['probe/decoder.2']['unlearned'] == {
        'mean': 91,
        'low': 90,
        'high': 92,
        'seeds': 2,
    }


LOOSE = dict(retained_min_share=0.5, probe_gap_max=9, relearning_gap_max=21)


@pytest.mark.parametrize(
    ('with_audit', 'stricter', 'result', 'sentence'),
    [
        (True, {}, 'passed', 'Forgotten, by every'),
        (False, {}, 'incomplete', 'only hidden, has not been shown'),
        (True, dict(probe_gap_max=8), 'failed', 'Hidden, not forgotten'),
        (True, dict(retained_min_share=0.9), 'failed', 'At too high a price'),
        (True, dict(forgotten_max=0.5), 'failed', 'Not forgotten'),
    ],
)
def test_the_verdict(tmp_path, with_audit, stricter, result, sentence):
    audit = audit_of(shapes_record()) if with_audit else None
    _, certificates = certify(tmp_path, audit=audit, thresholds={**LOOSE, **stricter})
    for certificate in certificates:
        assert certificate['verdict']['result'] == result
        assert sentence in certificate['verdict']['sentence']


def test_classes_that_come_back_in_a_later_task_fail_their_request_alone(tmp_path):
    record = shapes_record()
    record['tasks'][1]['per_class'].update(circle=5.0, square=2.0)
    _, (first, second) = certify(tmp_path, record, thresholds=dict(retained_min_share=0.5))
    assert check(first, 'forgotten_max', 1)['value'] == 3.5
    assert first['verdict']['sentence'].startswith('Came back in part')
    assert second['verdict']['result'] == 'incomplete'


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'oracle': False}, 'no oracle to compare with'),
        ({'files': {'unlearned': file(ABC)}}, 'another file than merged/task_02.pth'),
        # The right hash in another role: the original put in the place of the merged file.
        ({'files': {'unlearned': file(ABC), 'oracle': file(LAST)}}, 'another file than'),
        ({'files': {'unlearned': file(LAST)}}, 'names no file of one'),
        ({'files': {'unlearned': file(LAST), 'oracle': file(LAST)}}, 'audited or the original'),
        ({'files': {'unlearned': file(LAST), 'oracle': file(ABC)}}, 'audited or the original'),
        ({'forgotten_classes': ['circle']}, 'does not cover this request'),
        ({'task': 9}, 'of task 9, which this run does not have'),
    ],
)
def test_an_audit_of_something_else_counts_for_nothing(tmp_path, changes, reason):
    _, (_, second) = certify(tmp_path, audit=audit_of(shapes_record(), **changes))
    for threshold in ('probe_gap_max', 'relearning_gap_max'):
        found = check(second, threshold)
        assert (found['result'], found['value']) == ('not measured', None)
        assert reason in found['reason']


def test_an_audit_of_an_earlier_task_does_not_cover_a_later_one(tmp_path):
    audit = audit_of(shapes_record(), task=1, forgotten_classes=['circle', 'square'])
    audit['files']['unlearned']['sha256'] = ABC
    audit = with_units(audit)
    _, (first, second) = certify(tmp_path, audit=audit)
    assert check(first, 'probe_gap_max')['result'] == 'failed'
    assert check(second, 'probe_gap_max')['result'] == 'not measured'


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (Path.unlink, 'merged/task_02.pth is missing'),
        (lambda path: path.write_bytes(b'x'), 'merged/task_02.pth was changed after the run'),
        (lambda path: path.write_bytes(b'abc'), 'merged/task_02.pth was changed after the run'),
    ],
)
def test_numbers_of_a_file_that_is_not_there_are_not_shown(tmp_path, spoil, reason):
    record = shapes_record()
    record['tasks'][1]['merged'] = dict(path='merged/task_02.pth', sha256=LAST)
    run, _ = certify(tmp_path, record, thresholds=LOOSE)
    spoil(run.work_dir / 'merged/task_02.pth')
    first, second = certificates_of(FinishedRun(run.work_dir))
    assert check(first, 'forgotten_max')['result'] == 'passed'  # its own file is as it was
    for found in (first, second):
        assert found['verdict']['verdict'] == 'not shown'
        assert reason in found['verdict']['reason']
    assert reason in check(second, 'retained_min_share')['reason']


def test_sealed_rows_stand_apart_and_count_for_nothing(tmp_path):
    record = shapes_record()
    record['tasks'][0]['metrics'].update({'AP_f': 50.0, 'sealed/AP_f': 0.0})
    record['tasks'][0]['per_class'].update(circle=50.0, square=50.0)
    _, (first, second) = certify(tmp_path, record)
    assert first['verdict']['verdict'] == 'not forgotten'
    assert first['sealed']['metrics'] == {'sealed/AP_f': 0.0}
    assert 'not evidence of forgetting' in first['sealed']['note']
    assert 'sealed/AP_f' not in first['metrics'] and second['sealed'] is None


def test_an_unfinished_run_says_so(tmp_path):
    record = shapes_record()
    del record['tasks'][1]
    _, (only,) = certify(tmp_path, record)
    assert only['unfinished'].startswith('The run is unfinished: 1 of its 2 requests is served')
    assert certify(tmp_path / 'whole')[1][0]['unfinished'] is None


def test_a_request_that_was_taken_back_says_so(tmp_path):
    run, (first, second) = certify(tmp_path)
    assert first['taken_back'] is second['taken_back'] is None
    entry = take_back(run.work_dir)
    first, second = certificates_of(run)
    assert first['taken_back'] == dict(
        time=entry['time'], in_force=[2], file=dict(path='merged/without_01.pth', sha256='7' * 64)
    )
    assert second['taken_back'] is None
    ledger = run.work_dir / 'ledger.jsonl'
    ledger.write_text(ledger.read_text().replace('[2]', '[]'))
    with pytest.raises(ForgettingError, match='Line 1 of .*ledger.jsonl does not fit'):
        certificates_of(run)


def test_not_a_number_is_null_and_never_passes(tmp_path):
    record = shapes_record()
    record['tasks'][1]['metrics']['AP_f'] = math.nan
    run, certificates = certify(tmp_path, record)
    assert check(certificates[1], 'forgotten_max')['result'] == 'not measured'
    assert certificates[1]['verdict']['sentence'].startswith(('At too', 'Not shown'))
    text = write_certificates(run, certificates)[1].read_text()
    assert 'NaN' not in text and json.loads(text)['metrics']['AP_f'] is None
