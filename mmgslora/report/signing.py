"""Ed25519 signatures of certificates; needs the optional package cryptography."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgslora.errors import ForgettingError
from mmgslora.records.finished_run import find_file, sha256
from mmgslora.records.schema import read_json
from mmgslora.report.certificate import file_text

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
except ImportError as error:
    raise ForgettingError(
        "Signatures need the package cryptography; install it with pip install 'mmgslora[signing]'."
    ) from error


def canonical(certificate: Mapping[str, Any]) -> bytes:
    """What is signed: all but ``signature``, as JSON with sorted keys and no spaces, in UTF-8."""
    content = {key: value for key, value in certificate.items() if key != 'signature'}
    style = dict(sort_keys=True, separators=(',', ':'), ensure_ascii=False, allow_nan=False)
    return json.dumps(content, **style).encode()


def sign(certificate: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The certificate with an Ed25519 signature and the public key that belongs to it."""
    public = key.public_key().public_bytes_raw()
    return dict(certificate, signature=_signature(public, key.sign(canonical(certificate))))


def verify(path: Path, public_key: Path | None = None) -> list[str]:
    """Check a certificate's signature, and the hashes of its files.

    Args:
        path: The certificate, in the ``certificates`` folder of its work_dir.
        public_key: Whose signature it must be (PEM). Defaults to None: the key in the
            certificate, which anybody could have put there.

    Returns:
        What was found, one sentence each.

    Raises:
        ForgettingError: The certificate is not signed or was changed, one of its files is another
            one, or the model that it certifies is not where it was.
    """
    if not path.is_file():
        raise ForgettingError(f'Certificate {str(path)!r} does not exist.')
    try:
        certificate = read_json(path)
    except ForgettingError as error:
        raise ForgettingError(
            f'{str(path)!r} is not the file that was signed: it is no JSON object any more.'
        ) from error
    signature = certificate.get('signature')
    if not isinstance(signature, dict):
        raise ForgettingError(
            f'{str(path)!r} is not signed; sign it with --sign KEYFILE when the report is written.'
        )
    key = load_key(public_key, public=True) if public_key else None
    try:
        raw = base64.b64decode(signature['public_key'], validate=True)
        value = base64.b64decode(signature['value'], validate=True)
        Ed25519PublicKey.from_public_bytes(raw).verify(value, canonical(certificate))
        if key and key.public_bytes_raw() != raw:
            raise ValueError('signed with another key')
    except (KeyError, TypeError, ValueError, InvalidSignature) as error:
        raise ForgettingError(
            f'{str(path)!r} was changed after it was signed, or was signed with another key.'
        ) from error
    whole = path.read_bytes() == file_text(certificate).encode()
    if not whole or signature != _signature(raw, value):
        raise ForgettingError(
            f'{str(path)!r} is not the file that was signed, byte for byte; its content is.'
        )
    whose = f'of {public_key}'
    if not public_key:
        whose = f'{signature["public_key"]}; --key PUBKEY checks whose that is'
    found = [f'{path}: the signature is valid, made with the key {whose}.']
    files = dict(certificate.get('files', {}))
    if certificate.get('sealed'):  # which is what is handed out
        files['sealed'] = certificate['sealed']['file']
    return found + _check_files(files, path.resolve().parent.parent)


def _signature(public: bytes, value: bytes) -> dict[str, str]:
    public, value = (base64.b64encode(part).decode() for part in (public, value))
    return dict(algorithm='Ed25519', public_key=public, value=value)


def _check_files(files: Mapping[str, Mapping], work_dir: Path) -> list[str]:
    found, changed = [], []
    for role, file in files.items():
        path = find_file(file['path'], work_dir) if file['sha256'] else None
        if path is not None and sha256(path) != file['sha256']:
            changed.append(file['path'])
        elif path is not None:
            found.append(f'{role}: {file["path"]} is the file that was certified.')
        elif role == 'merged':
            raise ForgettingError(
                f'The signature is valid, but the certified model {file["path"]} is not here to be '
                'compared; put the certificate into the certificates folder of its work_dir.'
            )
        elif file['sha256']:
            found.append(f'{role}: {file["path"]} is not here, so it was not compared.')
    if changed:
        raise ForgettingError(
            f'The signature is valid, but not of these files: {", ".join(dict.fromkeys(changed))} '
            'changed after the certificate was written.'
        )
    return found


def make_key(path: Path) -> Path:
    """Write a new Ed25519 private key (PEM, readable by its owner alone) and ``path.pub``.

    Returns:
        The path of the public key.

    Raises:
        ForgettingError: One of the files exists already.
    """
    public_path = path.with_name(f'{path.name}.pub')
    for taken in (path, public_path):
        if taken.exists():
            raise ForgettingError(f'{str(taken)!r} exists already; give the name of a new file.')
    key = Ed25519PrivateKey.generate()
    private = pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()
    public = pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(*private))
    public_path.write_bytes(key.public_key().public_bytes(*public))
    return public_path


def load_key(path: Path, public: bool = False) -> Ed25519PrivateKey | Ed25519PublicKey:
    """The key that signs, or the ``public`` one that verifies.

    Raises:
        ForgettingError: The file is missing or holds no unencrypted Ed25519 key of this kind (PEM).
    """
    try:
        content = path.read_bytes()
        key = (
            pem.load_pem_public_key(content) if public else pem.load_pem_private_key(content, None)
        )
    except (OSError, TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey if public else Ed25519PrivateKey):
        kind = 'public key in PEM' if public else 'private key in PEM without a password'
        raise ForgettingError(
            f'Key file {str(path)!r} is missing or no Ed25519 {kind}; make one with --make-key.'
        )
    return key
