import base64
import hashlib
import json
import math
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mmgslora.errors import ForgettingError
from mmgslora.report.certificate import (
    certificates_of,
    load_key,
    make_key,
    sign,
    verify,
    write_certificates,
)
from mmgslora.report.run import FinishedRun

from .records import shapes_record
from .runs import ABC, audit_of, make_run


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
            "request of task 2 has 'by'; allowed are requested_by, reason, reference, date",
        ),
        (dict(requests=[dict(date='31.13.2026')]), "task 1 is '31.13.2026'; it must be a day"),
        (dict(requests=[dict(date='2026-02-30')]), "task 1 is '2026-02-30'; it must be a day"),
        (dict(thresholds=dict(forgoten_max=1)), "'forgoten_max'; allowed are forgotten_max"),
        (dict(thresholds=dict(forgotten_max='low')), "forgotten_max is 'low'; it must be a number"),
        (dict(thresholds=dict(forgotten_max=-1)), 'forgotten_max is -1; it must .* 0 and 100'),
        (dict(thresholds=dict(retained_min_share=95)), 'share is 95; .* 0 and 1, a share of 1'),
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


def test_not_a_number_is_null_and_never_passes(tmp_path):
    record = shapes_record()
    record['tasks'][1]['metrics']['AP_f'] = math.nan
    run, certificates = certify(tmp_path, record)
    assert check(certificates[1], 'forgotten_max')['result'] == 'not measured'
    assert certificates[1]['verdict']['sentence'].startswith(('At too', 'Not shown'))
    text = write_certificates(run, certificates)[1].read_text()
    assert 'NaN' not in text and json.loads(text)['metrics']['AP_f'] is None


@pytest.fixture
def signed(tmp_path):
    """A signed certificate and the public key, as files."""
    public = make_key(tmp_path / 'keys' / 'officer.pem')
    run, certificates = certify(tmp_path)
    key = load_key(tmp_path / 'keys' / 'officer.pem')
    return write_certificates(run, [sign(c, key) for c in certificates])[0], public


def test_anyone_with_cryptography_alone_can_verify(signed):
    path, public = signed
    certificate = json.loads(path.read_text())
    signature = certificate.pop('signature')
    message = json.dumps(certificate, sort_keys=True, separators=(',', ':'), ensure_ascii=False)
    key = serialization.load_pem_public_key(public.read_bytes())
    key.verify(base64.b64decode(signature['value']), message.encode())
    with pytest.raises(InvalidSignature):
        key.verify(base64.b64decode(signature['value']), message.replace('1', '2', 1).encode())


def test_what_was_signed_is_found_valid_and_its_files_unchanged(signed):
    path, public = signed
    assert 'signature is valid' in verify(path)[0] and '--key' in verify(path)[0]
    lines = verify(path, public)
    assert 'officer.pem.pub' in lines[0]
    assert 'merged: merged/task_01.pth is the file that was certified.' in lines


def test_no_byte_can_be_changed(signed):
    path, _ = signed
    content = path.read_bytes()
    where = content.index(b'"signature"')
    for index in [*range(0, where, 23), *range(where, len(content))]:
        changed = bytearray(content)
        changed[index] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ForgettingError, match='not signed|changed after|not the file that was'):
            verify(path)
    path.write_bytes(content)
    verify(path)


def test_another_key_is_not_enough(signed, tmp_path):
    path, _ = signed
    other = make_key(tmp_path / 'other.pem')
    with pytest.raises(ForgettingError, match='signed with another key'):
        verify(path, other)


def test_a_model_changed_after_it_was_certified_is_named(signed):
    path, public = signed
    (path.parent.parent / 'merged' / 'task_01.pth').write_bytes(b'other')
    with pytest.raises(ForgettingError, match=r'not of these files: merged/task_01\.pth changed'):
        verify(path, public)


def test_a_file_that_is_not_here_is_said_to_be_missing(signed):
    path, public = signed
    (path.parent.parent / 'original.pth').unlink()
    assert 'original: original.pth is not here, so it was not compared.' in verify(path, public)


def test_an_unsigned_certificate_cannot_be_verified(tmp_path):
    run, certificates = certify(tmp_path)
    with pytest.raises(ForgettingError, match='is not signed'):
        verify(write_certificates(run, certificates)[0])


def pem(key, password=None):
    how = serialization.BestAvailableEncryption(password) if password else None
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        how or serialization.NoEncryption(),
    )


def test_a_bad_key_file_is_one_clear_sentence(tmp_path):
    bad = {
        'empty': b'',
        'text': b'-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n',
        'rsa': pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        'locked': pem(Ed25519PrivateKey.generate(), b'secret'),
        'public': make_key(tmp_path / 'key.pem').read_bytes(),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ForgettingError, match=f'{name}.*no Ed25519 private key in PEM'):
            load_key(tmp_path / name)
    with pytest.raises(ForgettingError, match='nowhere'):
        load_key(tmp_path / 'nowhere')


def test_a_new_key_is_for_its_owner_alone_and_replaces_none(tmp_path):
    make_key(tmp_path / 'key.pem')
    assert (tmp_path / 'key.pem').stat().st_mode & 0o077 == 0
    with pytest.raises(ForgettingError, match='exists already'):
        make_key(tmp_path / 'key.pem')
