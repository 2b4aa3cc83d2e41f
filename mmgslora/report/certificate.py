"""One machine-readable certificate per request: who asked for what, what was measured, who signs.

What a user fills in stands at the top of the run's config, or later in a config for ``--config``::

    requests = [
        dict(requested_by='...', reason='...', reference='...', date='2026-01-31'),  # of task 1
        None,                                                                        # of task 2
    ]
    thresholds = dict(forgotten_max=2.0, retained_min_share=0.95)

:data:`mmgslora.audit.verdict.LIMITS` says what the limits mean and what holds where none is set.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mmgslora.audit.verdict import Verdict, judge_request, limits_of
from mmgslora.errors import ForgettingError
from mmgslora.report.record import merged_file, unfinished, values_before
from mmgslora.report.run import FinishedRun, find_file, read_json, sha256, write_text

REQUEST_FIELDS = ('requested_by', 'reason', 'reference', 'date')
_SHOWN = ('result', 'sentence', 'reason')
SEALED_NOTE = 'Rows removed from what is handed out; not evidence of forgetting.'


def certificates_of(run: FinishedRun) -> list[dict[str, Any]]:
    """The unsigned certificates of a run, in the order of the requests.

    Args:
        run: The finished run.

    Raises:
        ForgettingError: ``requests`` or ``thresholds`` are not what they must be.
    """
    planned = (run.record.get('protocol') or {}).get('tasks') or run.tasks
    requests = requests_of(run.requests, max(len(planned), len(run.tasks)))
    return [
        _certificate(run, task, request, verdict)
        for task, request, verdict in zip(run.tasks, requests, judge_run(run))
    ]


def audit_reason(run: FinishedRun, task: dict) -> str:
    """Why a run's audit says nothing about a task's request; empty if it does."""
    audit = run.audit
    if audit is None:
        return 'there is no audit.json'
    if not isinstance(audit.task, int) or not 1 <= audit.task <= len(run.tasks):
        return f'audit.json is of task {audit.task}, which this run does not have'
    left_out = [name for name in task['forget'] if name not in audit.forgotten]
    if audit.task < task['task'] or left_out:
        return f'audit.json is of task {audit.task} and does not cover this request'
    if reason := unfit_files(run).get(audit.task):
        return reason
    hashes = {
        role: file.get('sha256')
        for role, file in (audit.content.get('files') or {}).items()
        if isinstance(file, dict)
    }
    merged, original = run.file(merged_file(audit.task)), run.file(run.original)
    if hashes.get('unlearned') != merged['sha256']:
        return f'audit.json was made of another file than {merged["path"]}'
    if audit.has_oracle and not hashes.get('oracle'):
        return 'audit.json has values of an oracle, but names no file of one'
    if audit.has_oracle and hashes['oracle'] in (merged['sha256'], original['sha256']):
        return 'the oracle of audit.json is the audited or the original model itself'
    return ''


def unfit_files(run: FinishedRun) -> dict[int, str]:
    """Task number -> why its merged file is not the one that the run measured, where it is not."""
    found = {}
    for task in run.tasks:
        file = run.file(merged_file(task['task']))
        recorded = (task.get('merged') or {}).get('sha256')
        if file['sha256'] is None:
            found[task['task']] = f'{file["path"]} is missing'
        elif recorded not in (None, file['sha256']):
            found[task['task']] = f'{file["path"]} was changed after the run had measured it'
    return found


def judge_run(run: FinishedRun) -> list[Verdict]:
    """The verdict on each request of a run, in their order.

    Raises:
        ForgettingError: The run's thresholds are not what they must be.
    """
    limits, unfit = limits_of(run.thresholds), unfit_files(run)
    found = []
    for task in run.tasks:
        reason = audit_reason(run, task)
        audit = None if reason else run.audit
        found.append(judge_request(run.record, task, limits, audit, reason, unfit))
    return found


def _certificate(run: FinishedRun, task: dict, request: dict, verdict: Verdict) -> dict[str, Any]:
    number_of_task, last = task['task'], run.tasks[-1]
    adapter = f'adapters/task_{number_of_task:02d}/adapter_model.safetensors'
    files = dict(
        original=run.file(run.original),
        adapter=run.file(adapter),
        merged=run.file(merged_file(number_of_task)),
        latest=run.file(merged_file(last['task'])),
        record=run.file('forgetting.json'),
        audit=run.file('audit.json') if run.audit else dict(path=None, sha256=None),
    )
    asked = {name for one in run.tasks for name in one['forget']}
    certificate = dict(
        certificate='mmgslora forgetting certificate',
        version=1,
        task=number_of_task,
        tasks_in_run=len(run.tasks),
        unfinished=unfinished(run.record) or None,
        classes=task['forget'],
        request=request,
        run=dict(config=run.record.get('config'), seed=run.record.get('seed')),
        files=files,
        split=run.split,
        metrics={k: v for k, v in task['metrics'].items() if not k.startswith('sealed/')},
        sealed=_sealed_part(run, task),
        per_class={
            name: dict(
                before=values_before(run.record, gone=name in asked).get(name),
                after=task['per_class'].get(name),
                latest=last['per_class'].get(name),
            )
            for name in run.record['pretrained']['per_class']
        },
        audit=_audit_part(run, audit_reason(run, task)),
        thresholds=limits_of(run.thresholds),
        thresholds_set_by_user=sorted(run.thresholds or {}),
        checks=verdict.checks,
        verdict={key: getattr(verdict, key) for key in ('verdict', *_SHOWN)},
        versions=run.record.get('versions') or {},
        written=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )
    return _without_nan(certificate)


def _sealed_part(run: FinishedRun, task: dict) -> dict[str, Any] | None:
    """What was measured of the sealed file, apart from everything that a verdict rests on."""
    metrics = {k: v for k, v in task['metrics'].items() if k.startswith('sealed/')}
    if not metrics:
        return None
    file = run.file(f'sealed/task_{task["task"]:02d}.pth')
    return dict(note=SEALED_NOTE, metrics=metrics, file=file)


def _audit_part(run: FinishedRun, reason: str) -> dict[str, Any]:
    if reason:
        return dict(covers_this_request=False, reason=reason)
    audit = run.audit
    return dict(
        covers_this_request=True,
        reason=None,
        task=audit.task,
        measures={
            measure: {
                model: asdict(value)
                for model in audit.models
                if (value := audit.value(measure, model))
            }
            for measure in audit.measures
        },
        cannot_conclude=audit.content.get('cannot_conclude') or [],
    )


def requests_of(requests: Any, tasks: int) -> list[dict[str, str | None]]:
    """What the user said of each request, for every task; None for a field that was left out.

    Args:
        requests: The config's ``requests``: a list with a dict or None for every task, or None.
        tasks: How many tasks the run is to have.

    Raises:
        ForgettingError: It is no such list, or is longer than the tasks; a field is unknown; or a
            date is none of the calendar, written as 2026-01-31.
    """
    asked = [] if requests is None else requests
    if not isinstance(asked, (list, tuple)) or not all(
        one is None or isinstance(one, Mapping) for one in asked
    ):
        raise ForgettingError(
            f'requests is {asked!r}; it must be a list with a dict or None for every task.'
        )
    if len(asked) > tasks:
        raise ForgettingError(
            f'requests has {len(asked)} entries, but the run has {tasks} tasks; '
            'there may be one for every task.'
        )
    return [_request(one or {}, n) for n, one in enumerate([*asked, *[None] * tasks][:tasks], 1)]


def _request(fields: Mapping[str, Any], task: int) -> dict[str, str | None]:
    for name in fields:
        if name not in REQUEST_FIELDS:
            raise ForgettingError(
                f'The request of task {task} has {name!r}; allowed are {", ".join(REQUEST_FIELDS)}.'
            )
    found = {k: None if fields.get(k) is None else str(fields[k]) for k in REQUEST_FIELDS}
    try:
        date.fromisoformat(found['date'] or '2026-01-31')
    except ValueError as error:
        raise ForgettingError(
            f'The date of the request of task {task} is {found["date"]!r}; it must be a day of '
            'the calendar, written as 2026-01-31.'
        ) from error
    return found


def _without_nan(value: Any) -> Any:
    """The value with None for every NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def write_certificates(run: FinishedRun, certificates: list[dict[str, Any]]) -> list[Path]:
    """Write ``certificates/task_XX.json`` below the work_dir.

    Args:
        run: Where they belong.
        certificates: From :func:`certificates_of`, signed or not.

    Returns:
        The paths written.
    """
    paths = []
    for certificate in certificates:
        path = run.work_dir / 'certificates' / f'task_{certificate["task"]:02d}.json'
        write_text(path, file_text(certificate))
        paths.append(path)
    return paths


def file_text(certificate: Mapping[str, Any]) -> str:
    """The one way a certificate is written; a signed file must be in it byte for byte."""
    text = json.dumps(certificate, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f'{text}\n'


def canonical(certificate: Mapping[str, Any]) -> bytes:
    """What is signed: all but ``signature``, as JSON with sorted keys and no spaces, in UTF-8."""
    content = {key: value for key, value in certificate.items() if key != 'signature'}
    text = json.dumps(
        content, sort_keys=True, separators=(',', ':'), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def sign(certificate: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The certificate with an Ed25519 signature and the public key that belongs to it."""
    public = key.public_key().public_bytes_raw()
    return dict(certificate, signature=_signature(public, key.sign(canonical(certificate))))


def verify(path: Path, public_key: Path | None = None) -> list[str]:
    """Check a certificate's signature, and the hashes of those of its files that are there.

    Args:
        path: The certificate, in the ``certificates`` folder of its work_dir.
        public_key: Whose signature it must be (PEM). Defaults to None: the key in the
            certificate, which anybody could have put there.

    Returns:
        What was found, one sentence each.

    Raises:
        ForgettingError: The certificate is not signed, was changed, or names another file.
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
    try:
        raw = base64.b64decode(signature['public_key'], validate=True)
        value = base64.b64decode(signature['value'], validate=True)
        inside = Ed25519PublicKey.from_public_bytes(raw)
        key = _load_public(public_key) if public_key else inside
        whole = path.read_bytes() == file_text(certificate).encode()
        key.verify(value, canonical(certificate))
    except (KeyError, TypeError, ValueError, InvalidSignature) as error:
        if isinstance(error, ForgettingError):
            raise
        raise ForgettingError(
            f'{str(path)!r} was changed after it was signed, or was signed with another key.'
        ) from error
    if not whole or signature != _signature(raw, value):
        raise ForgettingError(
            f'{str(path)!r} is not the file that was signed, byte for byte; its content is.'
        )
    whose = (
        f'made with the key of {public_key}'
        if public_key
        else f'made with the key {signature["public_key"]}; --key PUBKEY checks whose that is'
    )
    found = [f'{path}: the signature is valid, {whose}.']
    return found + _check_files(certificate, path.resolve().parent.parent)


def _signature(public: bytes, value: bytes) -> dict[str, str]:
    return dict(
        algorithm='Ed25519',
        public_key=base64.b64encode(public).decode(),
        value=base64.b64encode(value).decode(),
    )


def _check_files(certificate: dict, work_dir: Path) -> list[str]:
    found, changed = [], []
    for role, file in certificate.get('files', {}).items():
        if not file['sha256']:
            continue
        path = find_file(file['path'], work_dir)
        if path is None:
            found.append(f'{role}: {file["path"]} is not here, so it was not compared.')
        elif sha256(path) == file['sha256']:
            found.append(f'{role}: {file["path"]} is the file that was certified.')
        else:
            changed.append(file['path'])
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
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(pem)
    public_path.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return public_path


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key that signs.

    Raises:
        ForgettingError: The file is missing or holds no unencrypted Ed25519 private key (PEM).
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ForgettingError(
            f'Key file {str(path)!r} is missing or no Ed25519 private key in PEM without a '
            'password; make one with --make-key.'
        )
    return key


def _load_public(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ForgettingError(f'Key file {str(path)!r} is missing or no Ed25519 public key in PEM.')
    return key
