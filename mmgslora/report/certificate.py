"""One machine-readable certificate per request: who asked for what, what was measured, who signs.

What a user fills in stands at the top of the run's config, or later in a config for ``--config``::

    requests = [
        dict(requested_by='...', reason='...', reference='...', date='2026-01-31'),  # of task 1
        None,                                                                        # of task 2
    ]
    thresholds = dict(forgotten_max=2.0, retained_min_share=0.95)

:class:`mmgslora.audit.verdict.Limits` says what the limits mean and what holds where none is set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from mmgslora.atomic import replacing
from mmgslora.audit.verdict import limits_of
from mmgslora.errors import ForgettingError
from mmgslora.lora.folder import weights_of
from mmgslora.records.finished_run import FinishedRun
from mmgslora.records.ledger import Ledger
from mmgslora.records.record import (
    adapter_folder,
    merged_file,
    sealed_file,
    unfinished,
    values_before,
)
from mmgslora.settings import problems


def _day(text: str) -> str:
    # From Python 3.11 on, 20260131 and 2026-W05-6 are read as well.
    if date.fromisoformat(text).isoformat() != text:
        raise ValueError
    return text


Day = Annotated[
    str,
    AfterValidator(_day),
    Field(description='a day of the calendar, written as 2026-01-31'),
]
SEALED_NOTE = 'Rows removed from what is handed out; not evidence of forgetting.'


@dataclass(frozen=True)
class Request:
    """What a user may say of a request."""

    requested_by: str | int | None = None
    reason: str | int | None = None
    reference: str | int | None = None
    date: Day | None = None


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
    asked = [one or {} for one in (*asked, *[None] * tasks)][:tasks]
    wrong = [w for n, one in enumerate(asked, 1) for w in problems(Request, one, f'request {n}')]
    if wrong:
        raise ForgettingError(' '.join(wrong))
    said = [asdict(Request(**one)) for one in asked]
    return [{k: v if v is None else str(v) for k, v in one.items()} for one in said]


def certificates_of(run: FinishedRun) -> list[dict[str, Any]]:
    """The unsigned certificates of a run, in the order of the requests.

    Args:
        run: The finished run.

    Raises:
        ForgettingError: ``requests`` or ``thresholds`` are not what they must be, or the ledger is
            not as it was written.
    """
    planned = (run.record.get('protocol') or {}).get('tasks') or run.tasks
    requests, last = requests_of(run.requests, max(len(planned), len(run.tasks))), run.tasks[-1]
    limits, nothing = limits_of(run.thresholds), dict(path=None, sha256=None)
    taken_back = _taken_back(run)
    before = values_before(run.record)
    before |= {
        name: values_before(run.record, gone=True).get(name)
        for task in run.tasks
        for name in task['forget']
    }
    found = []
    for task, request, verdict in zip(run.tasks, requests, run.verdicts):
        n, metrics = task['task'], task['metrics']
        sealed = {k: v for k, v in metrics.items() if k.startswith('sealed/')}
        certificate = dict(
            certificate='mmgslora forgetting certificate',
            version=1,
            task=n,
            tasks_in_run=len(run.tasks),
            unfinished=unfinished(run.record) or None,
            classes=task['forget'],
            taken_back=taken_back.get(n),
            request=request,
            run=dict(config=run.record.get('config'), seed=run.record.get('seed')),
            files=dict(
                original=run.original_file,
                adapter=_adapter(run, n),
                merged=run.file(merged_file(n)),
                latest=run.file(merged_file(last['task'])),
                record=run.file('forgetting.json'),
                audit=run.file('audit.json') if run.audit else nothing,
            ),
            split=run.split,
            metrics={k: v for k, v in metrics.items() if k not in sealed},
            sealed=sealed
            and dict(note=SEALED_NOTE, metrics=sealed, file=run.file(sealed_file(n)))
            or None,
            per_class={
                name: dict(
                    before=value,
                    after=task['per_class'].get(name),
                    latest=last['per_class'].get(name),
                )
                for name, value in before.items()
            },
            audit=_audit_part(run, run.audit_reason(task)),
            thresholds=limits,
            thresholds_set_by_user=sorted(run.thresholds or {}),
            checks=verdict.checks,
            verdict={k: getattr(verdict, k) for k in ('verdict', 'result', 'sentence', 'reason')},
            versions=run.record.get('versions') or {},
            written=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        )
        found.append(_without_nan(certificate))
    return found


def _adapter(run: FinishedRun, task: int) -> dict[str, str | None]:
    """What a task changed: the matrices of LoRA, or the parameters that were trained."""
    folder = adapter_folder(task)
    return run.file(f'{folder}/{weights_of(run.work_dir / folder)}')


def _taken_back(run: FinishedRun) -> dict[int, dict[str, Any]]:
    """Task number -> when its request was taken back, and the model that was made without it."""
    return {
        entry['task']: dict(
            time=entry['time'], in_force=entry.get('in_force'), file=entry['files'].get('merged')
        )
        for entry in Ledger(run.work_dir).entries
        if entry['event'] == 'taken back'
    }


def _audit_part(run: FinishedRun, reason: str) -> dict[str, Any]:
    if reason:
        return dict(covers_this_request=False, reason=reason)
    audit, measures = run.audit, {}
    for measure in audit.measures:
        values = {model: audit.value(measure, model) for model in audit.models}
        measures[measure] = {model: asdict(value) for model, value in values.items() if value}
    return dict(
        covers_this_request=True,
        reason=None,
        task=audit.task,
        measures=measures,
        cannot_conclude=audit.content.get('cannot_conclude') or [],
    )


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
        with replacing(path) as draft:  # as bytes: what is signed has one kind of line ends
            draft.write_bytes(file_text(certificate).encode())
        paths.append(path)
    return paths


def file_text(certificate: Mapping[str, Any]) -> str:
    """The one way a certificate is written; a signed file must be in it byte for byte."""
    text = json.dumps(certificate, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f'{text}\n'
