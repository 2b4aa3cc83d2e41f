"""The report of a run: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import base64
import json
import math
import os
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mmgslora.audit.verdict import LIMITS, worst
from mmgslora.report import charts
from mmgslora.report.audit_section import audit_section, sentence
from mmgslora.report.certificate import SEALED_NOTE, audit_reason, certificates_of, judge_run
from mmgslora.report.figures import group_map, short_group_names
from mmgslora.report.format import DASH, percent, points, short
from mmgslora.report.record import (
    found_keys,
    hardest_hit,
    mean_before,
    merged_file,
    metric,
    metric_prefix,
    number,
    share_kept,
    unfinished,
    values_before,
)
from mmgslora.report.run import FinishedRun, write_text
from mmgslora.report.table import summary_lines

_HERE = Path(__file__).parent
_TASKS_PER_TABLE = 10


def write_report(
    run: FinishedRun, certificates: list[dict[str, Any]] | None = None, path: Path | None = None
) -> Path:
    """Write a run's report.

    Args:
        run: The finished run.
        certificates: Its certificates, from :func:`certificates_of`. Defaults to None: they are
            made for the page.
        path: The file to write. Defaults to None: ``report.html`` in the work_dir.

    Returns:
        The path written.
    """
    path = path or run.work_dir / 'report.html'
    write_text(path, report_page(run, certificates))
    return path


def report_page(run: FinishedRun, certificates: list[dict[str, Any]] | None = None) -> str:
    """The report as HTML; see :func:`write_report`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(points=points, percent=percent)
    certificates = certificates_of(run) if certificates is None else certificates
    record, prefix = run.record, metric_prefix(run.record)
    order = _class_order(run)
    figures = {
        'metrics': charts.metrics_chart(record),
        'classes': charts.classes_chart(record, order),
    }
    audit = audit_section(run, prefix)
    for section in audit['sections'] if audit else ():
        if section['figure'] is not None:
            figures[f'audit-{section["kind"]}'] = section['figure']
    return environment.get_template('page.html.j2').render(
        plotly=Markup(get_plotlyjs()),
        figures={name: _as_json(figure) for name, figure in figures.items()},
        name=Path(record.get('config') or run.work_dir.resolve().name).stem,
        record=record,
        prefix=prefix,
        unit=prefix[:-1],
        certificates=certificates,
        verdict=_verdict(run, certificates),
        unfinished=unfinished(record),
        split=run.split,
        sealed=_sealed(run),
        summary=[*_inshort(run), *summary_lines(record)],
        check_table=_check_table(certificates),
        rows=[_row(run, task) for task in run.tasks],
        found=found_keys(run.tasks),
        has_missing=any(metric(task, f'{prefix}m') is not None for task in run.tasks),
        task_tables=_chunks(run.tasks),
        class_rows=[_class_row(run, name) for name in order],
        blocks=_blocks(run),
        picture=_data_uri(run.work_dir / 'before_after.png'),
        static_picture=_data_uri(run.work_dir / 'forgetting.png'),
        audit=audit,
        cannot=_cannot_conclude(run),
        threshold_meanings={name: meaning for name, (_, meaning) in LIMITS.items()},
        files=_files(run, certificates),
        settings=_settings(record),
        commands=_commands(run),
        signed='signature' in certificates[-1],
        written=datetime.fromisoformat(certificates[-1]['written']).strftime('%Y-%m-%d %H:%M UTC'),
    )


def _verdict(run: FinishedRun, certificates: list[dict[str, Any]]) -> dict[str, Any]:
    """The run's headline: the worst verdict of its requests, and which have it."""
    verdict = worst(judge_run(run))
    same = [c['task'] for c in certificates if c['verdict']['verdict'] == verdict.verdict]
    everywhere = len(same) == len(certificates)
    which = '' if everywhere else f'Task {", ".join(map(str, same))}: '
    return dict(
        result=verdict.result, sentence=verdict.sentence, which=which, everywhere=everywhere
    )


def _sealed(run: FinishedRun) -> list[str]:
    """What was measured of the sealed files, one line per task; it is no evidence."""
    lines = []
    for task in run.tasks:
        found = {k: number(v) for k, v in task['metrics'].items() if k.startswith('sealed/')}
        if found:
            values = ', '.join(f'{name} {points(value)}' for name, value in found.items())
            lines.append(f'Task {task["task"]}: {values}. {SEALED_NOTE}')
    return lines


def _inshort(run: FinishedRun) -> list[str]:
    """What the model after the last task does, and what attacks found inside it."""
    last, prefix = run.tasks[-1], metric_prefix(run.record)
    gone = [name for name in _class_order(run) if name in [*last['forget'], *last['old']]]
    values = [v for name in gone if (v := number(last['per_class'].get(name))) is not None]
    said = []
    if values:
        before = mean_before(run.record, gone, gone=True)
        worst = max(gone, key=lambda name: number(last['per_class'].get(name)) or 0.0)
        said.append(
            f'Forgotten classes ({len(gone)}), after the last task: mean {prefix[:-1]} '
            f'{points(sum(values) / len(values))} of {points(before)} before; '
            f'the highest is {worst} with {points(max(values))}.'
        )
    if (share := share_kept(run.record, last)) is not None:
        said.append(
            f'Retained classes ({len(last["retain"])}) keep {percent(share)} of their '
            f'{prefix[:-1]}.'
        )
    if run.audit is None:
        said.append('Whether the forgotten classes are only hidden was not audited.')
    else:
        kinds = {kind: run.audit.of(kind) for kind in ('probe', 'relearning', 'new_head')}
        said += [sentence(run.audit, kind, names, prefix) for kind, names in kinds.items() if names]
    return said


def _check_table(certificates: list[dict[str, Any]]) -> dict[str, Any]:
    """The checks of all requests side by side: one line per request, one column per check."""
    last = certificates[-1]['task']
    columns = [('forgotten_max', 0), ('forgotten_max', 1), ('retained_min_share', 0)]
    columns += [('probe_gap_max', 0), ('relearning_gap_max', 0)]
    titles = ['forgotten, after its task', f'forgotten, after task {last}', 'retained']
    titles += ['probe, above the oracle', 'relearning, above the oracle']
    rows, reasons = [], []
    for certificate in certificates:
        cells = []
        for threshold, which in columns:
            of_it = [c for c in certificate['checks'] if c['threshold'] == threshold]
            cells.append(of_it[which] if which < len(of_it) else None)
        rows.append(dict(task=certificate['task'], cells=cells))
        reasons += [c['reason'] for c in certificate['checks'] if c['reason']]
    shown = [i for i in range(len(columns)) if any(row['cells'][i] for row in rows)]
    for row in rows:
        row['cells'] = [row['cells'][i] for i in shown]
    thresholds = certificates[0]['thresholds']
    return dict(
        titles=[(titles[i], columns[i][0], thresholds[columns[i][0]]) for i in shown],
        rows=rows,
        reasons=list(dict.fromkeys(reasons)),
    )


def _row(run: FinishedRun, task: dict) -> dict[str, Any]:
    """A task's line in the summary."""
    record, prefix = run.record, metric_prefix(run.record)
    groups = task.get('groups') or {}
    names = task['forget']
    return dict(
        task=task['task'],
        names=', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else ''),
        f=metric(task, f'{prefix}f'),
        f_before=mean_before(record, task['forget'], gone=True),
        r=metric(task, f'{prefix}r'),
        r_before=mean_before(record, task['retain']),
        share=share_kept(record, task),
        o=metric(task, f'{prefix}o'),
        o_before=mean_before(record, task['old'], gone=True),
        m=metric(task, f'{prefix}m'),
        m_before=mean_before(record, task.get('missing', [])),
        h=metric(task, 'H'),
        found=[metric(task, key) for key in found_keys(run.tasks)],
        hit=hardest_hit(record, task),
        zero=f'{sum(norm == 0.0 for norm in groups.values())} of {len(groups)}' if groups else '',
        seconds=number(task.get('train_seconds')),
        images=task.get('train_images') or {},
    )


def _class_order(run: FinishedRun) -> list[str]:
    """Classes in the order of the requests, then those that stay."""
    asked = [name for task in run.tasks for name in task['forget']]
    return list(dict.fromkeys([*asked, *run.record['pretrained']['per_class']]))


def _class_row(run: FinishedRun, name: str) -> dict[str, Any]:
    """A class before forgetting and after every task, with the colour of each cell."""
    asked_in = next((t['task'] for t in run.tasks if name in t['forget']), None)
    before = number(values_before(run.record, gone=asked_in is not None).get(name))
    cells = []
    for task in run.tasks:
        now = number(task['per_class'].get(name))
        gone = asked_in is not None and task['task'] >= asked_in
        cells.append(dict(now=now, gone=gone, style=_heat(now, gone)))
    last = cells[-1]['now']
    return dict(
        name=name,
        asked_in=asked_in,
        missing=name in run.tasks[-1].get('missing', []),
        before=before,
        before_style=_heat(before, False),
        cells=cells,
        share=last / before if before and last is not None and asked_in is None else None,
    )


def _heat(value: float | None, gone: bool) -> str:
    """Paler for less; orange where the class was asked to go, blue where it must stay."""
    if value is None:
        return ''
    red, green, blue = (213, 94, 0) if gone else (0, 114, 178)
    alpha = 0.04 + 0.36 * min(max(value, 0.0), 100.0) / 100
    return f'background: rgba({red}, {green}, {blue}, {alpha:.2f})'


def _blocks(run: FinishedRun) -> dict[str, Any]:
    """The map of blocks and tasks: 0 or the norm, darker for a larger share of the task's."""
    blocks = group_map(run.record)
    rows = []
    for full, name, norms, relative in zip(
        blocks.groups, short_group_names(blocks.groups), blocks.norms, blocks.relative
    ):
        cells = [
            dict(
                text=_norm(norm),
                zero=norm == 0.0,
                style=''
                if math.isnan(norm) or norm == 0.0
                else f'background: rgba(0, 114, 178, {0.12 + 0.38 * share:.2f})',
            )
            for norm, share in zip(norms.tolist(), relative.tolist())
        ]
        rows.append(dict(name=name, full=full, cells=cells))
    return dict(rows=rows, zero=int(blocks.zero.sum()), total=int(blocks.zero.size))


def _norm(norm: float) -> str:
    if math.isnan(norm):
        return DASH
    # A tiny norm must not read as zero.
    return '0' if norm == 0.0 else f'{norm:.1f}' if norm >= 0.1 else f'{norm:.1g}'


def _chunks(tasks: list[dict]) -> list[tuple[int, int, list[int]]]:
    """Task numbers in pieces that fit a printed page, each with its first and last index."""
    numbers = [task['task'] for task in tasks]
    return [
        (start, start + _TASKS_PER_TABLE, numbers[start : start + _TASKS_PER_TABLE])
        for start in range(0, len(numbers), _TASKS_PER_TABLE)
    ]


def _cannot_conclude(run: FinishedRun) -> list[str]:
    """What stays open, in plain sentences."""
    said = [line] if (line := unfinished(run.record)) else []
    if run.audit is None:
        said.append(
            'No audit was run. The numbers above show what the model answers, not what it still '
            'knows: a probe on its layers, or a few images of a class, may bring the class back.'
        )
    else:
        if not run.audit.has_oracle:
            said.append(
                'The audit had no oracle, a model trained without the classes. Without it, nobody '
                'can say how much of what an attack finds is left over from training, and how much '
                'any model would show.'
            )
        reason = audit_reason(run, run.tasks[-1])
        if reason:
            said.append(f'The audit does not count for the last model: {reason}.')
        said += [str(line) for line in run.audit.content.get('cannot_conclude') or []]
    said.append(
        'Nothing here is about the original model, the adapters or the training checkpoint: who '
        'has one of them can undo a request. Hand out the merged file alone.'
    )
    return list(dict.fromkeys(said))


def _files(run: FinishedRun, certificates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every file the report rests on, with its hash, each once."""
    found = [dict(run.file(run.original), role='original model (load_from)')]
    for certificate in certificates:
        task = certificate['task']
        found.append(dict(certificate['files']['adapter'], role=f'adapter of task {task}'))
        found.append(dict(certificate['files']['merged'], role=f'model after task {task}'))
    found.append(dict(run.file('forgetting.json'), role='record of the run'))
    if run.config_path:
        found.append(dict(run.file(run.config_path.name), role='config of the run'))
    if run.audit:
        found.append(dict(run.file('audit.json'), role='audit'))
        files = run.audit.content.get('files') or {}
        found += [
            dict(path=file.get('path'), sha256=file.get('sha256'), role=f'{role}, as audited')
            for role, file in files.items()
            if isinstance(file, dict)
        ]
    return found


_SETTINGS = ('family', 'method', 'tune', 'schedule', 'split', 'seal', 'protocol', 'audit')


def _settings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of the run, as far as its record has them."""
    found = ((name, record.get(name)) for name in _SETTINGS)
    return [(name, short(value)) for name, value in found if value not in (None, [], {})]


def _commands(run: FinishedRun) -> list[tuple[str, str]]:
    """What to type to do it again."""
    folder = _from_here(run.work_dir)
    config = _from_here(run.config_path) if run.config_path else run.record.get('config')
    quoted = shlex.quote(str(config))
    again = f'python tools/train.py {quoted} --work-dir work_dirs/again'
    if run.original:
        # The config that a resumed run leaves may name the checkpoint that it went on from.
        again += f' --cfg-options resume=False load_from={shlex.quote(run.original)}'
    last = run.tasks[-1]['task']
    merged = shlex.quote(_from_here(run.work_dir / merged_file(last)))
    folder = shlex.quote(folder)
    return [
        ('the run, with every setting as it was' if run.config_path else 'the run', again),
        ('the last model measured again', f'python tools/test.py {quoted} {merged} --task {last}'),
        ('the audit', f'python tools/audit.py {folder} --oracle CHECKPOINT'),
        ('this report and the certificates', f'python tools/report.py {folder}'),
    ]


def _from_here(path: Path) -> str:
    return os.path.relpath(path)


def _data_uri(path: Path) -> str | None:
    if not path.is_file():
        return None
    return 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode()


def _as_json(figure: go.Figure) -> Markup:
    """A figure inside a script element: no text of it can end that element."""
    content = json.loads(figure.to_json())
    content['layout'].pop('template', None)
    text = json.dumps(content, separators=(',', ':'))
    for character in '<>&\u2028\u2029':
        text = text.replace(character, f'\\u{ord(character):04x}')
    return Markup(text)
