"""``audit.json``: what was measured so far, on which files, and what follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from mmgslora.audit.measures import HEAD_ONLY, ORACLE, ORIGINAL, UNLEARNED, Settings
from mmgslora.audit.relearning import Curve, area_between, steps_to_oracle
from mmgslora.audit.verdict import Verdict, judge_request, limits_of, worst
from mmgslora.report.audit_rows import AuditRows
from mmgslora.report.record import unfinished

_ALWAYS = (
    'One oracle stands for all: another seed of its training would give other numbers, and a '
    'difference smaller than that spread means nothing.',
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

    A unit that is there, measured on the same files with the same settings, need not be measured
    again; one that was measured on others is dropped.

    Args:
        path: Of ``audit.json``.
        run: The content of the run's ``forgetting.json``.
        task: The audited task's entry in it; the classes of this task and of all before it must
            be gone.
        files: ``path`` and ``sha256`` of each file by its role: the models' names and others.
        settings: Of the audit.
        limits: Of the verdict, from :func:`mmgslora.audit.verdict.limits_of`. Defaults to None:
            the defaults.
    """

    def __init__(
        self,
        path: str | Path,
        run: Mapping[str, Any],
        task: Mapping[str, Any],
        files: Mapping[str, dict],
        settings: Settings,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.path = Path(path)
        self.run, self.task = run, task['task']
        self.forgotten = [*task['old'], *task['forget']]
        self.files, self.settings = dict(files), settings
        self.limits = limits_of(None) if limits is None else dict(limits)
        self.units: dict[str, dict] = {}
        self.nearest: dict[str, str] = {}
        before = self._read()
        for name, unit in before.get('units', {}).items():
            if unit['key'] == self._key(name):
                self.units[name] = unit
        self._measured = [row for row in before.get('rows', ()) if row.get('unit') in self.units]
        if f'outcomes:{ORIGINAL}' in self.units:
            self.nearest = before.get('nearest', {})

    def _read(self) -> dict:
        try:
            return json.loads(self.path.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}

    def _key(self, name: str) -> str:
        """Hash of everything that a unit's rows depend on."""
        unit, _, model = name.partition(':')
        roles = {model} | (self.files.keys() - {UNLEARNED, ORACLE, ORIGINAL, HEAD_ONLY})
        if unit == 'divergence':
            roles.add(ORACLE)
        settings = asdict(self.settings)
        if unit.startswith('relearning'):
            settings.pop('relearning_images')  # each k is a unit of its own
        hashes = {role: self.files[role]['sha256'] for role in roles if role in self.files}
        content = [unit, self.task, self.forgotten, self.run.get('split'), settings, hashes]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def has(self, unit: str, model: str) -> bool:
        """Whether a unit is already measured for a model."""
        return f'{unit}:{model}' in self.units

    def add(self, unit: str, model: str, rows: list[dict], seconds: float) -> None:
        """Keep the rows of a unit and write the file."""
        name = f'{unit}:{model}'
        self.units[name] = dict(key=self._key(name), seconds=round(seconds, 2))
        self._measured += [dict(row, unit=name) for row in rows]
        self.write()

    @property
    def rows(self) -> list[dict]:
        """All rows, and those that follow from them by comparing models."""
        measured = self._measured
        return [*measured, *self._damage(measured), *self._leads(measured)]

    def mean(self, measure: str, model: str, rows: list[dict] | None = None) -> float | None:
        """Mean over the seeds; None where nothing was measured."""
        rows = self.rows if rows is None else rows
        values = [r['value'] for r in rows if (r['measure'], r['model']) == (measure, model)]
        return fmean(values) if values else None

    def _damage(self, rows: list[dict]) -> list[dict]:
        """Points that each retained class has lost since the original."""
        values = {(row['model'], row['measure']): row['value'] for row in rows}
        derived = []
        for (model, measure), value in values.items():
            name = measure.removeprefix('output/per_class/')
            before = values.get((ORIGINAL, measure))
            if measure == name or name in self.forgotten or model == ORIGINAL or before is None:
                continue
            measure = f'damage/{name}'
            derived.append(dict(model=model, seed=None, measure=measure, value=before - value))
        return derived

    def _leads(self, rows: list[dict]) -> list[dict]:
        """What each relearning curve is ahead of the oracle's with the same images."""
        curves = self._curves(rows)
        derived = []
        for (model, seed, k), curve in curves.items():
            oracle = curves.get((ORACLE, seed, k))
            if model == ORACLE or oracle is None or oracle.steps != curve.steps:
                continue
            for name, value in (
                ('lead', area_between(curve, oracle)),
                ('steps_to_oracle', steps_to_oracle(curve, oracle)),
            ):
                measure = f'relearning/{k}/{name}'
                derived.append(dict(model=model, seed=seed, measure=measure, value=value))
        return derived

    def _curves(self, rows: list[dict]) -> dict[tuple[str, int, str], Curve]:
        points: dict[tuple, list[tuple[int, float]]] = {}
        for row in rows:
            first, _, rest = row['measure'].partition('/')
            if first == 'relearning':
                k, _, step = rest.partition('/step')
                key = row['model'], row['seed'], k
                points.setdefault(key, []).append((int(step), row['value']))
        return {key: Curve(*map(tuple, zip(*sorted(of)))) for key, of in points.items()}

    def verdicts(self) -> list[Verdict]:
        """One for every request up to the audited task; none before the output was measured."""
        if not self.has('output', UNLEARNED):
            return []
        rows = AuditRows(
            dict(task=self.task, forgotten_classes=self.forgotten, rows=self.rows), str(self.path)
        )
        return [
            judge_request(self.run, task, self.limits, rows)
            for task in self.run['tasks']
            if task['task'] <= self.task
        ]

    def verdict(self) -> Verdict | None:
        """The worst of :meth:`verdicts`."""
        return worst(found) if (found := self.verdicts()) else None

    def cannot_conclude(self) -> list[str]:
        """What this audit says nothing about, in sentences."""
        said = list(_ALWAYS) if ORACLE in self.files else [*_NO_ORACLE, *_ALWAYS[1:]]
        return [unfinished(self.run), *said] if unfinished(self.run) else said

    def write(self) -> None:
        """Write the file; it is never there in part."""
        verdict = self.verdict()
        content: dict[str, Any] = dict(
            task=self.task,
            forgotten_classes=self.forgotten,
            files=self.files,
            settings=asdict(self.settings),
            rows=self.rows,
            nearest=self.nearest,
            limits=self.limits,
            verdict=verdict and verdict.as_dict(),
            cannot_conclude=self.cannot_conclude(),
            units=self.units,
        )
        draft = self.path.with_suffix('.tmp')
        draft.write_text(json.dumps(content, indent=1), encoding='utf-8')
        draft.replace(self.path)
