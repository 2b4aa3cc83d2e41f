"""The report of a run: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import base64
import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from mmgslora.atomic import write_text
from mmgslora.audit.rows import MODEL_NAMES
from mmgslora.audit.sentences import name_of, sentence, text_of, worst_first
from mmgslora.audit.verdict import figures, worst
from mmgslora.records.finished_run import FinishedRun
from mmgslora.records.record import (
    NAME_RATE,
    found_keys,
    mean_before,
    mean_of,
    merged_file,
    metric_prefix,
    number,
    share_kept,
    task_summary,
    unfinished,
    values_before,
)
from mmgslora.report import charts
from mmgslora.report.blocks import group_map, short_group_names
from mmgslora.report.certificate import SEALED_NOTE, certificates_of
from mmgslora.report.format import percent, points, short
from mmgslora.report.table import summary_lines

_TASKS_PER_TABLE = 10
_MOST_DAMAGED = 12
_SETTINGS = ('family', 'method', 'tune', 'schedule', 'split', 'seal', 'protocol', 'audit')


def write_report(run: FinishedRun, certificates: list[dict[str, Any]] | None = None) -> Path:
    """Write a run's report, ``report.html`` in its work_dir.

    Args:
        run: The finished run.
        certificates: Its certificates, from :func:`certificates_of`. Defaults to None: they are
            made for the page.

    Returns:
        The path written.
    """
    path = run.work_dir / 'report.html'
    write_text(path, report_page(run, certificates))
    return path


def report_page(run: FinishedRun, certificates: list[dict[str, Any]] | None = None) -> str:
    """The report as HTML; see :func:`write_report`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=points,
        percent=percent,
        short=short,
        norm=_norm,
        figures=figures,
        quote=lambda x: shlex.quote(str(x)),
    )
    certificates = certificates_of(run) if certificates is None else certificates
    record, prefix = run.record, metric_prefix(run.record)
    order, numbers = _class_order(run), [task['task'] for task in run.tasks]
    last, config = run.tasks[-1], run.config_path
    return environment.get_template('page.html.j2').render(
        run=run,
        name=Path(record.get('config') or run.work_dir.resolve().name).stem,
        record=record,
        prefix=prefix,
        unit=prefix[:-1],
        name_rate=NAME_RATE,
        certificates=certificates,
        checks=_checks(certificates, run.audit and run.audit.reference_name or 'the oracle'),
        verdict=worst(run.verdicts),
        unfinished=unfinished(record),
        sealed_note=SEALED_NOTE,
        summary=[*_in_short(run), *summary_lines(record)],
        rows=[task_summary(record, task) for task in run.tasks],
        found=found_keys(run.tasks),
        # Tables in pieces that fit a printed page: first and last index, and the tasks' numbers.
        pieces=[
            (i, i + _TASKS_PER_TABLE, numbers[i : i + _TASKS_PER_TABLE])
            for i in range(0, len(numbers), _TASKS_PER_TABLE)
        ],
        forgetting=charts.as_svg(charts.forgetting_figure(record)),
        classes=charts.as_svg(charts.classes_figure(record, order)),
        class_rows=[_class_row(run, name) for name in order],
        blocks=group_map(record),
        short_group_names=short_group_names,
        image=_image(run.work_dir / 'before_after.png'),
        audit=run.audit and _audit(run),
        audit_reason=run.audit_reason(last),
        files=_files(run, certificates),
        settings=[(k, record[k]) for k in _SETTINGS if record.get(k) not in (None, [], {})],
        config=os.path.relpath(config) if config else record.get('config'),
        folder=os.path.relpath(run.work_dir),
        merged=os.path.relpath(run.work_dir / merged_file(last['task'])),
        written=datetime.fromisoformat(certificates[-1]['written']).strftime('%Y-%m-%d %H:%M UTC'),
    )


def _in_short(run: FinishedRun) -> list[str]:
    """What the model after the last task does, and what attacks found inside it."""
    last, unit = run.tasks[-1], metric_prefix(run.record)[:-1]
    gone = [name for name in _class_order(run) if name in [*last['forget'], *last['old']]]
    values = {n: v for n in gone if (v := number(last['per_class'].get(n))) is not None}
    said = []
    if values:
        highest = max(values, key=values.get)
        count = len(gone) if len(values) == len(gone) else f'{len(values)} of {len(gone)} measured'
        now, before = mean_of(values, gone), mean_before(run.record, gone, gone=True)
        said.append(
            f'Forgotten classes ({count}), after the last task: mean {unit} {points(now)} of '
            f'{points(before)} before; the highest is {highest} with {points(values[highest])}.'
        )
    if (share := share_kept(run.record, last)) is not None:
        said.append(
            f'Retained classes ({len(last["retain"])}) keep {percent(share)} of their {unit}.'
        )
    if run.audit is None:
        return [*said, 'Whether the forgotten classes are only hidden was not audited.']
    if reason := run.audit_reason(last):
        return [*said, f'Whether they are only hidden in this model was not audited: {reason}.']
    kinds = ('probe', 'relearning', 'new_head')
    return said + [sentence(run.audit, kind) for kind in kinds if run.audit.of(kind)]


def _checks(
    certificates: list[dict[str, Any]], reference: str
) -> list[tuple[str, str, list[dict[str, Any] | None]]]:
    """Columns of what the results rest on: title, threshold, and the check of every request.

    None where a request has no such check; a threshold that no request has gets no column.
    """
    last = certificates[-1]['task']
    final, columns = f', after task {last}', []
    for what, name in (
        ('forgotten', 'forgotten_max'),
        ('one of them', 'forgotten_class_max'),
        ('named as any', 'forgotten_name_max'),
    ):
        columns += [(f'{what}, after its task', name, False), (f'{what}{final}', name, True)]
    columns += [('retained', 'retained_min_share', False)]
    columns += [('one of them', 'retained_class_min_share', False)]
    columns += [(f'probe, above {reference}', 'probe_gap_max', False)]
    columns += [(f'relearning, above {reference}', 'relearning_gap_max', False)]

    def of(certificate: dict[str, Any], name: str, again: bool) -> dict[str, Any] | None:
        task = certificate['task']
        if again and task == last:
            return None
        file = merged_file(last if again else task)
        made = [check for check in certificate['checks'] if check['threshold'] == name]
        return next((x for x in made if x['model'] == file or 'forgotten' not in name), None)

    found = [(title, name, [of(c, name, x) for c in certificates]) for title, name, x in columns]
    return [column for column in found if any(column[2])]


def _class_order(run: FinishedRun) -> list[str]:
    """Classes in the order of the requests, then those that stay."""
    asked = [name for task in run.tasks for name in task['forget']]
    return list(dict.fromkeys([*asked, *run.record['pretrained']['per_class']]))


def _class_row(run: FinishedRun, name: str) -> dict[str, Any]:
    """A class before forgetting and after every task."""
    asked_in = next((t['task'] for t in run.tasks if name in t['forget']), None)
    before = number(values_before(run.record, gone=asked_in is not None).get(name))
    now = [number(task['per_class'].get(name)) for task in run.tasks]
    kept = before and now[-1] is not None and asked_in is None
    return dict(
        name=name,
        asked_in=asked_in,
        missing=name in run.tasks[-1].get('missing', []),
        before=before,
        now=now,
        share=now[-1] / before if kept else None,
    )


def _norm(norm: float) -> str:
    # A tiny norm must not read as zero.
    return '0' if norm == 0.0 else f'{norm:.1f}' if norm >= 0.1 else f'{norm:.1g}'


def _audit(run: FinishedRun) -> dict[str, Any]:
    """What the template shows of the audit."""
    audit = run.audit
    covered = [v for v, task in zip(run.verdicts, run.tasks) if not run.audit_reason(task)]
    values = [audit.value(measure, model) for measure in audit.measures for model in audit.models]
    return dict(
        sections=[_section(run, kind, measures) for kind, measures in audit.kinds().items()],
        models=[MODEL_NAMES.get(model, model) for model in audit.models],
        # An attack that was close has more draws than the others.
        seeds=sorted({value.seeds for value in values if value and value.seeds > 1}),
        verdict=worst(covered) if covered else None,
        several=len(covered) > 1,
        rows=audit,
    )


def _section(run: FinishedRun, kind: str, measures: list[str]) -> dict[str, Any]:
    """A kind of measures: its sentence, its chart, and what each model has, with the spread."""
    audit, figure, shown = run.audit, None, measures
    if kind in ('probe', 'prototype'):
        figure = charts.probe_figure(audit, measures)
    elif kind == 'relearning' and audit.curves():
        figure = charts.relearning_figure(audit)
    elif kind == 'outcomes' and any(map(audit.outcomes, audit.models)):
        figure = charts.outcomes_figure(audit)
    elif kind == 'output':
        # Class by class it is in section 3, and what each lost under "Damage".
        shown = [measure for measure in measures if '/per_class/' not in measure]
    elif kind == 'damage':
        shown = worst_first(audit)[:_MOST_DAMAGED]
    rows = []
    for measure in shown:
        cells = []
        for value in (audit.value(measure, model) for model in audit.models):
            low, high = (text_of(kind, value and getattr(value, end)) for end in ('low', 'high'))
            spread = f'({low} to {high})' if value and value.seeds > 1 else ''
            cells.append((text_of(kind, value and value.mean), spread))
        name, gap = name_of(measure), audit.gap(measure)
        near = audit.nearest.get(name) if kind == 'damage' else None
        above = text_of(kind, gap)
        plus = '+' if gap and gap > 0 and above != text_of(kind, 0.0) else ''
        name = f'{name} (nearest: {near})' if near else name
        rows.append(dict(name=name, cells=cells, gap=plus + above))
    return dict(
        kind=kind,
        sentence=sentence(audit, kind),
        figure=figure and charts.as_svg(figure),
        left_out=len(measures) if kind == 'damage' and len(shown) < len(measures) else 0,
        rows=rows,
    )


def _files(run: FinishedRun, certificates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every file the report rests on, with its hash, each once."""
    found = [dict(run.original_file, role='original model (load_from)')]
    for certificate in certificates:
        task = certificate['task']
        found.append(dict(certificate['files']['adapter'], role=f'adapter of task {task}'))
        found.append(dict(certificate['files']['merged'], role=f'model after task {task}'))
    found.append(dict(run.file('forgetting.json'), role='record of the run'))
    if run.config_path:
        found.append(dict(run.file(run.config_path.name), role='config of the run'))
    if run.audit:
        found.append(dict(run.file('audit.json'), role='audit'))
        found += [dict(f, role=f'{role}, as audited') for role, f in run.audit.files.items()]
    return found


def _image(path: Path) -> dict[str, str | None]:
    """An image to be shown, or why it is not."""
    if not path.is_file():
        return dict(source=None, why=f'The run left no image ({path.name}).')
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # a broken file can fail in any way
        return dict(source=None, why=f'{path.name} cannot be read as an image: {error}.')
    source = 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode()
    return dict(source=source, why=None)
