"""One machine-readable certificate per request: who asked for what, what was measured, who signs.

What a user fills in stands at the top of the run's config::

    requests = [
        dict(requested_by='...', reason='...', reference='...', date='2026-01-31'),  # of task 1
        None,                                                                        # of task 2
    ]
    thresholds = dict(forgotten_max=2.0, retained_min_share=0.95)

:data:`THRESHOLDS` says what the limits mean and what holds where the config sets none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mmgslora.errors import ForgettingError
from mmgslora.report.audit_rows import curve_point
from mmgslora.report.record import mean_before, metric_prefix, number, share_kept
from mmgslora.report.run import FinishedRun, find_file, read_json, sha256, write_text

THRESHOLDS = {
    'forgotten_max': (2.0, 'Highest mean AP (or accuracy) of the forgotten classes, in %'),
    'retained_min_share': (0.95, 'Smallest share of their own value that retained classes keep'),
    'probe_gap_max': (2.0, "Most points by which a probe may name more than the oracle's"),
    'relearning_gap_max': (0.0, 'Most points by which relearning may lead the oracle'),
}
"""Name -> (default, meaning). The probe reads the last layer, what the classifier head reads;
relearning is compared after 20 steps on 16 images. All defaults are ours."""

REQUEST_FIELDS = ('requested_by', 'reason', 'reference', 'date')
RELEARNING_POINT = (16, 20)
PASSED, FAILED, NOT_MEASURED = 'passed', 'failed', 'not measured'
_ROUNDING = 1e-9


def certificates_of(run: FinishedRun) -> list[dict[str, Any]]:
    """The unsigned certificates of a run, in the order of the requests.

    Args:
        run: The finished run.

    Raises:
        ForgettingError: ``requests`` or ``thresholds`` of the config are not what they must be.
    """
    limits = limits_of(run.thresholds)
    requests = _requests(run)
    return [_certificate(run, index, request, limits) for index, request in enumerate(requests)]


def limits_of(thresholds: Mapping[str, Any] | None) -> dict[str, float]:
    """The config's thresholds over the defaults.

    Raises:
        ForgettingError: A name is unknown or a value is no number.
    """
    limits = {name: default for name, (default, _) in THRESHOLDS.items()}
    if thresholds is not None and not isinstance(thresholds, Mapping):
        raise ForgettingError(
            f'thresholds is {thresholds!r}; it must be a dict with {", ".join(THRESHOLDS)}.'
        )
    for name, value in (thresholds or {}).items():
        if name not in limits:
            raise ForgettingError(f'thresholds has {name!r}; allowed are {", ".join(THRESHOLDS)}.')
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise ForgettingError(f'thresholds.{name} is {value!r}; it must be a number.')
        limits[name] = float(value)
    return limits


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
    merged = run.file(run.merged(audit.task))
    files = (audit.content.get('files') or {}).values()
    audited = {file.get('sha256') for file in files if isinstance(file, dict)}
    if merged['sha256'] is None:
        return f'{merged["path"]} is missing, so audit.json cannot be matched with a file'
    if merged['sha256'] not in audited:
        return f'audit.json was made of another file than {merged["path"]}'
    return ''


def _certificate(run: FinishedRun, index: int, request: dict, limits: dict) -> dict[str, Any]:
    task, last = run.tasks[index], run.tasks[-1]
    number_of_task = task['task']
    reason = audit_reason(run, task)
    checks = [
        *_forgotten_checks(run, task, limits['forgotten_max']),
        *_retained_checks(run, task, limits['retained_min_share']),
        *_audit_checks(run, reason, limits),
    ]
    adapter = f'adapters/task_{number_of_task:02d}/adapter_model.safetensors'
    files = dict(
        original=run.file(run.original),
        adapter=run.file(adapter),
        merged=run.file(run.merged(number_of_task)),
        latest=run.file(run.merged(last['task'])),
        record=run.file('forgetting.json'),
        audit=run.file('audit.json') if run.audit else dict(path=None, sha256=None),
    )
    certificate = dict(
        certificate='mmgslora forgetting certificate',
        version=1,
        task=number_of_task,
        tasks_in_run=len(run.tasks),
        classes=task['forget'],
        request=request,
        run=dict(config=run.record.get('config'), seed=run.record.get('seed')),
        files=files,
        metrics=task['metrics'],
        per_class={
            name: dict(
                before=run.record['pretrained']['per_class'].get(name),
                after=task['per_class'].get(name),
                latest=last['per_class'].get(name),
            )
            for name in run.record['pretrained']['per_class']
        },
        audit=_audit_part(run, reason),
        thresholds=limits,
        thresholds_set_by_user=sorted(run.thresholds or {}),
        checks=checks,
        verdict=verdict_of(checks),
        versions=run.record.get('versions') or {},
        written=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )
    return _without_nan(certificate)


def verdict_of(checks: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What the checks say together.

    Returns:
        ``result`` ('passed', 'failed' or 'incomplete') and ``sentence``.
    """
    checks = list(checks)
    failed = {check['threshold'] for check in checks if check['result'] == FAILED}
    unknown = {check['threshold'] for check in checks if check['result'] == NOT_MEASURED}
    audits = {'probe_gap_max', 'relearning_gap_max'}
    recognised = [
        check['result'] == FAILED for check in checks if check['threshold'] == 'forgotten_max'
    ]
    if any(recognised[:1]):
        sentence = 'Not forgotten: the model still recognises what it was asked to forget.'
    elif any(recognised):
        sentence = (
            'Came back in part: forgotten at first, but the last model of the run recognises these '
            'classes more than is allowed.'
        )
    elif failed & audits:
        sentence = (
            'Hidden, not forgotten: the model no longer names the classes, but more of them is '
            'left inside it than in a model that never saw them.'
        )
    elif failed:
        sentence = 'At too high a price: what had to stay lost more than was allowed.'
    elif unknown & {'forgotten_max', 'retained_min_share'}:
        sentence = 'Not shown: a value that decides was not measured.'
    elif unknown:
        sentence = (
            'No longer recognised. Whether the classes are gone from inside the model, or only '
            'hidden, has not been shown.'
        )
    else:
        sentence = 'Forgotten, by every threshold that was set.'
    result = 'failed' if failed else 'incomplete' if unknown else 'passed'
    return dict(result=result, sentence=sentence)


def _forgotten_checks(run: FinishedRun, task: dict, limit: float) -> list[dict]:
    """At the end of the task, and again in the last model of the run."""
    prefix = metric_prefix(run.record)
    now = number(task['metrics'].get(f'{prefix}f'))
    name = f'{prefix}f after task {task["task"]}'
    checks = [_check('forgotten_max', name, now, limit, run.merged(task['task']))]
    last = run.tasks[-1]
    if last is not task:
        values = [number(last['per_class'].get(c)) for c in task['forget']]
        mean = None if None in values else sum(values) / len(values)
        name = f'{prefix}o of these classes after task {last["task"]}'
        checks.append(_check('forgotten_max', name, mean, limit, run.merged(last['task'])))
    return checks


def _retained_checks(run: FinishedRun, task: dict, limit: float) -> list[dict]:
    share = share_kept(run.record, task)
    name = f'share of their pre-trained mean kept by {len(task["retain"])} retained classes'
    if not task['retain'] or not mean_before(run.record, task['retain']):
        share = None
    model = run.merged(task['task'])
    return [_check('retained_min_share', name, share, limit, model, smallest=True)]


def _audit_checks(run: FinishedRun, reason: str, limits: dict) -> list[dict]:
    audit, model = run.audit, None
    probe, relearning = 'probe', 'relearning'
    gaps: dict[str, float | None] = {}
    if not reason:
        model = run.merged(audit.task)
        probe = next(reversed(audit.of('probe')), probe)
        points = [
            name
            for kind in ('relearning', 'new_head')
            for name in audit.of(kind)
            if curve_point(name) == RELEARNING_POINT
        ]
        # Relearning as the model is, and with new rows in the head: the larger lead counts.
        gaps = {name: audit.gap(name) for name in points}
        known = [name for name in points if gaps[name] is not None]
        relearning = max(known or points[:1], key=gaps.get, default=relearning)
        gaps = {name: audit.gap(name) for name in (probe, relearning)}
        if not audit.has_oracle:
            reason = 'the audit has no oracle to compare with'
        else:
            reason = 'the audit has no such comparison with the oracle'
    return [
        _check(
            threshold,
            f'{name}, above the oracle',
            gaps.get(name),
            limits[threshold],
            model,
            reason=reason,
        )
        for threshold, name in (('probe_gap_max', probe), ('relearning_gap_max', relearning))
    ]


def _check(
    threshold: str,
    measure: str,
    value: float | None,
    limit: float,
    model: str | None,
    smallest: bool = False,
    reason: str = 'the run did not record it',
) -> dict[str, Any]:
    check = dict(threshold=threshold, measure=measure, value=value, limit=limit, model=model)
    if value is None:
        return dict(check, result=NOT_MEASURED, reason=reason)
    # A share of 0.95 that comes out as 0.9499999999 of floating point has not failed.
    fits = value >= limit - _ROUNDING if smallest else value <= limit + _ROUNDING
    return dict(check, result=PASSED if fits else FAILED, reason=None)


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
        verdict=audit.content.get('verdict'),
        cannot_conclude=audit.content.get('cannot_conclude') or [],
    )


def _requests(run: FinishedRun) -> list[dict[str, Any]]:
    """What the user said of each request; None for a field that was not filled in."""
    asked = run.requests if run.requests is not None else []
    planned = ((run.cfg.get('train_cfg') or {}).get('protocol') or {}).get('tasks') or run.tasks
    if not isinstance(asked, (list, tuple)) or not all(
        one is None or isinstance(one, Mapping) for one in asked
    ):
        raise ForgettingError(
            f'requests is {asked!r}; it must be a list with a dict or None for every task.'
        )
    if len(asked) > max(len(planned), len(run.tasks)):
        raise ForgettingError(
            f'requests has {len(asked)} entries, but the run has {len(planned)} tasks; '
            'there may be one for every task.'
        )
    filled = [dict(one or {}) for one in asked] + [{}] * len(run.tasks)
    return [
        {**dict.fromkeys(REQUEST_FIELDS), **{k: _plain(v) for k, v in one.items()}}
        for one in filled[: len(run.tasks)]
    ]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


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
