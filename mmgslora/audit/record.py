"""``audit.json``: what was measured so far, on which files, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock

from mmgslora.atomic import drop_drafts, write_text
from mmgslora.audit.measures import MORE, Settings
from mmgslora.audit.relearning import Curve, area_between, steps_to_oracle
from mmgslora.audit.rows import (
    ORIGINAL,
    UNLEARNED,
    UNSEEN,
    AuditRows,
    curve_point,
    digest,
    is_oracle,
    unit_key,
)
from mmgslora.audit.verdict import (
    ATTACKS,
    NEW_HEAD_MEASURE,
    Verdict,
    judge_request,
    limits_of,
    worst,
)
from mmgslora.records.ledger import Ledger
from mmgslora.records.record import unfinished

_ONE_ORACLE = (
    'One oracle stands for all: another seed of its training would give other numbers, and a '
    'difference smaller than that spread means nothing.'
)
_UNSEEN = (
    'Without an oracle the verdict compares with other classes, which the original never saw: it '
    'shows whether the forgotten ones are as new to the model as those are, and nothing that the '
    'two sets of classes do not share, such as how like retained ones they look.'
)
_ALWAYS = (
    'Only these attacks failed or succeeded; a stronger probe, more images or another learning '
    'rate may find what they did not.',
    'Adapters, training checkpoints and the original model can undo the forgetting; they were '
    'not part of this audit.',
)
_NO_ORACLE = (
    'Without an oracle (the model retrained without the classes) it cannot be concluded whether '
    'the classes are gone or hidden: probes and relearning succeed to some degree on a model that '
    'never saw the classes, and only the difference from that model counts.',
    'Without an oracle, ZRF, membership AUC and outcomes describe the outputs but not how '
    'close they are to those of a model that never saw the classes.',
)


class AuditRecord:
    """Rows of an audit, kept in a file that is rewritten whole after every unit.

    A unit that is in the file, measured on the same files with the same settings, need not be
    measured again; one that was measured on others, or changed since, is dropped. Several
    processes may measure other units of the same audit at once: none loses what another adds. What
    the file holds of another task is put beside it, and taken from there when that is audited.

    Args:
        path: Of ``audit.json``.
        run: The content of the run's ``forgetting.json``.
        task: The audited task's entry in it; the classes of this task and of all before it must
            be gone.
        files: ``path`` and ``sha256`` of each file by its role: the models' names and others.
        settings: Of the audit.
        limits: Of the verdict, from :func:`mmgslora.audit.verdict.limits_of`. Defaults to None:
            the defaults.
        data: What identifies the data and the architecture of the audit. Defaults to ''.
        known: Files of other audits, whose units count as this one's own where they are of the
            same model, data and settings. Defaults to none.
        unfit: Task number -> why its merged file is not the one that the run measured, as
            :attr:`FinishedRun.unfit` has it. Defaults to None: all are.

    Raises:
        ForgettingError: The ledger beside the file is not as it was written.
    """

    def __init__(
        self,
        path: str | Path,
        run: Mapping[str, Any],
        task: Mapping[str, Any],
        files: Mapping[str, dict],
        settings: Settings,
        limits: Mapping[str, float] | None = None,
        data: str = '',
        known: Sequence[str | Path] = (),
        unfit: Mapping[int, str] | None = None,
    ) -> None:
        self.path, self.run, self._unfit = Path(path), run, unfit
        self.about = dict(
            data=data,
            task=task['task'],
            forgotten_classes=[*task['old'], *task['forget']],
            files=dict(files),
            settings=asdict(settings),
        )
        self._taken_back = [
            f'Request {entry["task"]} ({", ".join(entry["classes"])}) was taken back on '
            f'{entry["time"][:10]}: this audit is of the model before, and nothing is known of '
            f'{entry["files"]["merged"]["path"]}.'
            for entry in Ledger(self.path.parent).entries
            if entry['event'] == 'taken back' and entry['task'] <= task['task']
        ]
        self.limits = limits_of(None) if limits is None else dict(limits)
        self.units: dict[str, dict] = {}
        self.nearest: dict[str, str] = {}
        self._measured: list[dict] = []
        for before in map(_read, (self.path, self.put_aside(task['task']), *known)):
            self._take(before)

    def put_aside(self, task: int) -> Path:
        """Where the audit of a task is while the file holds that of another one."""
        return self.path.with_name(f'{self.path.stem}_task_{task:02d}.json')

    def _take(self, before: Mapping[str, Any]) -> None:
        """What an audit has measured of the same, as long as its rows are as it left them."""
        for name, unit in before.get('units', {}).items():
            rows = [row for row in before.get('rows', ()) if row.get('unit') == name]
            unchanged = unit.get('rows', digest(rows)) == digest(rows)
            if name not in self.units and unit['key'] == self._key(name) and unchanged:
                self.units[name] = unit
                self._measured += rows
                if name == f'outcomes:{ORIGINAL}':
                    self.nearest = before.get('nearest', {})

    def _key(self, name: str) -> str:
        return unit_key(name, self.about, self.run.get('split'))

    def has(self, unit: str, model: str) -> bool:
        """Whether a unit is already measured for a model."""
        return f'{unit}:{model}' in self.units

    def add(self, unit: str, model: str, rows: list[dict], seconds: float) -> None:
        """Keep the rows of a unit and write the file."""
        name = f'{unit}:{model}'
        self.units[name] = dict(key=self._key(name), rows=digest(rows), seconds=round(seconds, 2))
        self._measured += [dict(row, unit=name) for row in rows]
        self.write()

    @property
    def rows(self) -> AuditRows:
        """All rows, and those that follow from them by comparing models."""
        rows = [*self._measured, *self._damage(), *self._leads()]
        content = dict(self.about, rows=rows, nearest=self.nearest, units=self.units)
        return AuditRows(content, str(self.path))

    def _damage(self) -> list[dict]:
        """Points that each retained class has lost since the original."""
        values = {(row['model'], row['measure']): row['value'] for row in self._measured}
        derived = []
        for (model, measure), value in values.items():
            name = measure.removeprefix('output/per_class/')
            gone = measure == name or name in self.about['forgotten_classes']
            before = values.get((ORIGINAL, measure))
            if not gone and model != ORIGINAL and before is not None:
                row = dict(model=model, seed=None, measure=f'damage/{name}', value=before - value)
                derived.append(row)
        return derived

    def _leads(self) -> list[dict]:
        """What each relearning curve is ahead of an oracle's with the same images.

        Of several oracles it is the one that ends highest, as for the verdict.
        """
        points: dict[tuple, list[tuple[int, float]]] = {}
        for row in self._measured:
            if row['measure'].startswith('relearning/'):
                images, step = curve_point(row['measure'])
                key = row['model'], row['seed'], images
                points.setdefault(key, []).append((step, row['value']))
        curves = {key: Curve(*map(tuple, zip(*sorted(of)))) for key, of in points.items()}
        ends: dict[int, dict[str, list[float]]] = {}
        for (model, _, k), curve in curves.items():
            if is_oracle(model):
                ends.setdefault(k, {}).setdefault(model, []).append(curve.values[-1])
        highest = {k: max(of.items(), key=lambda item: fmean(item[1]))[0] for k, of in ends.items()}
        derived = []
        for (model, seed, k), curve in curves.items():
            oracle = curves.get((highest.get(k), seed, k))
            if is_oracle(model) or oracle is None or oracle.steps != curve.steps:
                continue
            lead, steps = area_between(curve, oracle), steps_to_oracle(curve, oracle)
            for name, value in (('lead', lead), ('steps_to_oracle', steps)):
                measure = f'relearning/k{k}/{name}'
                derived.append(dict(model=model, seed=seed, measure=measure, value=value))
        return derived

    def close_calls(self) -> list[str]:
        """Units of the attacks that decide, where further draws might decide otherwise.

        Also those of which a model has further draws already: the others must have them, too.
        """
        units = {_unit_of(m): m for m in ATTACKS}
        begun = {name.rpartition(':')[0].removesuffix(MORE) for name in self.units if MORE in name}
        return [unit for unit, m in units.items() if unit in begun or self.rows.is_close(m)]

    def further_draws(self, models: Sequence[str]) -> list[tuple[str, str]]:
        """Units of further draws, and which of these models make them.

        Those that are compared and have the first draws, whose learning rate they take.
        """
        return [
            (f'{unit}{MORE}', model)
            for unit in self.close_calls()
            for model in models
            if (model in (UNLEARNED, UNSEEN) or is_oracle(model)) and self.has(unit, model)
        ]

    def rate(self, unit: str, model: str) -> float | None:
        """The learning rate of the draws that a unit of further ones adds to; None of others."""
        name = f'{unit.removesuffix(MORE)}:{model}'
        return next((row.get('lr') for row in self._measured if row['unit'] == name), None)

    def verdict(self) -> Verdict | None:
        """The worst on the requests up to the audited task; None before the output was measured."""
        if not self.has('output', UNLEARNED):
            return None
        tasks = [task for task in self.run['tasks'] if task['task'] <= self.about['task']]
        rows = self.rows
        return worst(
            judge_request(self.run, task, self.limits, rows, unfit=self._unfit) for task in tasks
        )

    def cannot_conclude(self) -> list[str]:
        """What this audit says nothing about, in sentences."""
        measured = self.rows.models  # a file that was given need not have been
        oracles = sum(map(is_oracle, measured))
        first = {0: _NO_ORACLE, 1: (_ONE_ORACLE,)}.get(oracles, ())
        if not oracles and UNSEEN in measured:
            first = (_UNSEEN, _NO_ORACLE[1])
        return [*filter(None, [unfinished(self.run)]), *self._taken_back, *first, *_ALWAYS]

    def write(self) -> None:
        """Write the file; it is whole or not there."""
        with FileLock(self.path.with_name(f'.{self.path.stem}.lock')):
            there, task = _read(self.path), self.about['task']
            self._take(there)
            if there.get('task', task) != task:
                _write(self.put_aside(there['task']), there)
            verdict = self.verdict()
            content = dict(
                self.rows.content,
                limits=self.limits,
                verdict=verdict and asdict(verdict),
                cannot_conclude=self.cannot_conclude(),
            )
            _write(self.path, content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whose lock is held, so that a draft of it that is there was left by a kill."""
    drop_drafts(path)
    write_text(path, json.dumps(content, indent=1))


def _read(path: str | Path) -> dict[str, Any]:
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}


def _unit_of(measure: str) -> str:
    """The unit of :meth:`~mmgslora.audit.measures.Audit.units` that an attack's value is of."""
    return 'new_head' if measure == NEW_HEAD_MEASURE else measure.rpartition('/')[0]
