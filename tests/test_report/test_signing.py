import base64
import importlib
import json
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mmgslora.errors import ForgettingError
from mmgslora.records.finished_run import FinishedRun
from mmgslora.report.certificate import certificates_of, file_text, write_certificates
from mmgslora.report.signing import load_key, make_key, sign, verify

from .records import shapes_record
from .runs import make_run


def certify(tmp_path):
    run = FinishedRun(make_run(tmp_path, shapes_record()))
    return run, certificates_of(run)


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
    # What JSON does not see: more room, and a key whose second value counts.
    for changed in (content + b'\n', content.replace(b'{', b'{"task": 7,', 1)):
        path.write_bytes(changed)
        with pytest.raises(ForgettingError, match='byte for byte'):
            verify(path)
    path.write_bytes(content)
    verify(path)


def test_another_key_is_not_enough(signed, tmp_path):
    path, _ = signed
    other = make_key(tmp_path / 'other.pem')
    with pytest.raises(ForgettingError, match='signed with another key'):
        verify(path, other)


def test_the_key_in_the_file_is_the_one_that_signed(signed):
    """It is not part of what is signed: whoever reads it must not be told of another signer."""
    path, public = signed
    certificate = json.loads(path.read_text())
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    certificate['signature']['public_key'] = base64.b64encode(other).decode()
    path.write_text(file_text(certificate))
    with pytest.raises(ForgettingError, match='changed after it was signed'):
        verify(path, public)


def test_a_model_changed_after_it_was_certified_is_named(signed):
    path, public = signed
    (path.parent.parent / 'merged' / 'task_01.pth').write_bytes(b'other')
    with pytest.raises(ForgettingError, match=r'not of these files: merged/task_01\.pth changed'):
        verify(path, public)


def test_the_sealed_model_is_compared_as_well(tmp_path):
    record = shapes_record()
    record['tasks'][0]['metrics']['sealed/AP_f'] = 0.0
    work_dir = make_run(tmp_path, record)
    sealed = work_dir / 'sealed/task_01.pth'
    sealed.parent.mkdir()
    sealed.write_bytes(b'abc')
    make_key(tmp_path / 'officer.pem')
    run, key = FinishedRun(work_dir), load_key(tmp_path / 'officer.pem')
    path = write_certificates(run, [sign(c, key) for c in certificates_of(run)])[0]
    assert 'sealed: sealed/task_01.pth is the file that was certified.' in verify(path)
    sealed.write_bytes(b'other')
    with pytest.raises(ForgettingError, match='sealed/task_01.pth changed after'):
        verify(path)


def test_a_file_that_is_not_here_is_said_to_be_missing(signed):
    path, public = signed
    (path.parent.parent / 'original.pth').unlink()
    assert 'original: original.pth is not here, so it was not compared.' in verify(path, public)


@pytest.mark.parametrize('how', ['model', 'all'])
def test_without_the_certified_model_nothing_is_verified(signed, how):
    path, public = signed
    for file in path.parent.parent.rglob('*'):
        if file.is_file() and file != path and (how == 'all' or 'task_01.pth' in file.name):
            file.unlink()
    with pytest.raises(ForgettingError, match='valid, but the certified model merged/task_01.pth'):
        verify(path, public)


def test_without_the_optional_package_one_sentence_says_which(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmgslora.report.signing')
    monkeypatch.setitem(sys.modules, 'cryptography.exceptions', None)
    with pytest.raises(ForgettingError, match=r"install it with pip install 'mmgslora\[signing\]'"):
        importlib.import_module('mmgslora.report.signing')


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
