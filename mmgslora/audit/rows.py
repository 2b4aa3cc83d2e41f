"""What an audit measured: one number per model, measure and seed, brought together."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mmgslora.errors import ForgettingError
from mmgslora.records.record import number

ORIGINAL, UNLEARNED, ORACLE = 'original', 'unlearned', 'oracle'
"""Of several oracles those after the first have a number, 'oracle 2'."""
UNSEEN = 'unseen'
"""The original again, asked of classes that it has never seen: a reference without an oracle."""
HEAD_ONLY = 'head only'
"""A control: the original without the head's rows of the classes, nothing trained."""
MODEL_NAMES = {
    ORIGINAL: 'before forgetting',
    UNLEARNED: 'after forgetting',
    HEAD_ONLY: 'head only (nothing trained)',
    ORACLE: 'oracle (never saw them)',
    UNSEEN: 'original, on classes it never saw',
}
KINDS = (
    *('output', 'outcomes', 'localisation', 'probe', 'prototype', 'relearning', 'new_head'),
    *('membership', 'divergence', 'damage'),
)
"""The first words of all measures, in the order in which they are told; others are 'other'."""
OUTCOMES = ('found', 'low score', 'called another', 'background')
_RANK = {ORIGINAL: 0, UNLEARNED: 1}
_DERIVED = re.compile(r'damage/.*|relearning/[^/]*/(lead|steps_to_oracle)')


def is_oracle(model: str) -> bool:
    """Whether a model is one of the oracles."""
    return re.fullmatch(rf'{ORACLE}( \d+)?', model) is not None


@dataclass(frozen=True)
class Spread:
    """One measure of one model over the seeds of the audit."""

    mean: float
    low: float
    high: float
    seeds: int


class AuditRows:
    """An audit, by measure and model.

    Models are 'original' (before forgetting), 'unlearned' (after it), 'oracle' (retrained without
    the classes); any other name is a baseline. Measures are paths, the first word is their kind.

    Args:
        content: What ``audit.json`` holds.
        name: How errors call the file.

    Raises:
        ForgettingError: A row lacks its model, measure or value.
    """

    def __init__(self, content: Mapping[str, Any], name: str = 'audit.json') -> None:
        self.content = content
        self.task: int | None = content.get('task')
        self.forgotten: list[str] = content.get('forgotten_classes') or []
        self.nearest: dict[str, str] = content.get('nearest') or {}
        self.files: dict[str, dict] = content.get('files') or {}
        self._values: dict[str, dict[str, list[float | None]]] = {}
        for row in content.get('rows') or []:
            try:
                value = number(row['value'])
                values = self._values.setdefault(row['measure'], {}).setdefault(row['model'], [])
                values.append(value)
                row['measure'].split('/'), row['model'].split()
            except (AttributeError, KeyError, TypeError) as error:
                raise ForgettingError(
                    f'A row of {name!r} is {row!r}; it must have a model, a measure and a value '
                    'that is a number or null.'
                ) from error
        for measure, of_models in self._values.items():  # what no object is called has no row
            for model in self._values.get('outcomes/found', {}):
                if measure.startswith('outcomes/called '):
                    of_models.setdefault(model, [0.0])
        names = dict.fromkeys(m for of_models in self._values.values() for m in of_models)
        self.models: list[str] = sorted(names, key=lambda m: 3 if is_oracle(m) else _RANK.get(m, 2))

    @property
    def measures(self) -> list[str]:
        """All measures, in the order of the file."""
        return list(self._values)

    def of(self, kind: str) -> list[str]:
        """The measures of a kind."""
        return self.kinds().get(kind, [])

    def kinds(self) -> dict[str, list[str]]:
        """The measures of every kind that was measured, kinds in the order of :data:`KINDS`."""
        found: dict[str, list[str]] = {kind: [] for kind in (*KINDS, 'other')}
        for measure in self._values:
            found.get(measure.split('/')[0], found['other']).append(measure)
        return {kind: measures for kind, measures in found.items() if measures}

    def value(self, measure: str, model: str) -> Spread | None:
        """Mean, lowest and highest over the seeds; None where nothing was measured.

        Nor is there a mean where a seed has no value, as of steps to what was never reached: that
        of the others would be another thing.
        """
        values = self._values.get(measure, {}).get(model)
        if not values or None in values:
            return None
        low, high = min(values), max(values)
        # The mean of equal values may be rounded to less than each: no error bar is negative.
        return Spread(min(max(fmean(values), low), high), low, high, len(values))

    def highest(self, measure: str) -> Spread | None:
        """The value of the oracle that has most; None where none was measured.

        Of several oracles each is a model that never saw the classes, so what any of them has is
        no sign of having seen them.
        """
        found = [self.value(measure, model) for model in self.models if is_oracle(model)]
        return max(filter(None, found), key=lambda value: value.mean, default=None)

    def reference(self, measure: str) -> Spread | None:
        """What is compared with: the highest oracle; without any, classes that were never seen."""
        return self.highest(measure) if self.has_oracle else self.value(measure, UNSEEN)

    @property
    def reference_name(self) -> str:
        """What is compared with, in words; '' where there is nothing."""
        if self.has_oracle:
            return 'the oracle'
        return 'classes never seen' if UNSEEN in self.models else ''

    def gap(self, measure: str) -> float | None:
        """By how much the forgetting model's mean lies above that of the reference."""
        unlearned, other = self.value(measure, UNLEARNED), self.reference(measure)
        return unlearned.mean - other.mean if unlearned and other else None

    def finds_out(self, measure: str, limit: float) -> bool:
        """Whether what is compared with would find the original out, which knows the classes.

        Classes that were never seen may be easier than those the original knows. It takes the
        original's value to tell; an oracle is of the very classes.
        """
        original, other = self.value(measure, ORIGINAL), self.reference(measure)
        return self.has_oracle or bool(original and other and original.mean - other.mean > limit)

    def is_close(self, measure: str) -> bool:
        """Whether the draws of one of the two lie further apart than the gap is wide."""
        pair = [self.value(measure, UNLEARNED), self.reference(measure)]
        return None not in pair and max(v.high - v.low for v in pair) > abs(self.gap(measure))

    @property
    def has_oracle(self) -> bool:
        """Whether any measure can be compared with an oracle."""
        return any(self.value(m, UNLEARNED) and self.highest(m) for m in self._values)

    def curves(self) -> dict[int, dict[str, list[tuple[int, Spread]]]]:
        """The relearning curves: images -> model -> (step, value) in the order of the steps."""
        found: dict[int, dict[str, list[tuple[int, Spread]]]] = {}
        for measure in self.of('relearning'):
            point = curve_point(measure)
            for model in self.models if point else ():
                value = self.value(measure, model)
                if value:
                    images, step = point
                    found.setdefault(images, {}).setdefault(model, []).append((step, value))
        for of_models in found.values():
            for curve in of_models.values():
                curve.sort(key=lambda at: at[0])
        return dict(sorted(found.items()))

    def outcomes(self, model: str) -> dict[str, float]:
        """What became of a model's forgotten objects, in percent; empty if it was not measured."""
        shares = dict.fromkeys(OUTCOMES, 0.0)
        measured = False
        for measure in self.of('outcomes'):
            name = measure.partition('/')[2].replace('_', ' ')
            what = 'called another' if name.startswith('called ') else name
            value = self.value(measure, model)
            if value and what in shares:
                shares[what] += value.mean
                measured = True
        return shares if measured else {}

    def foreign(self, split: str | None) -> str:
        """Why these are not the rows of an audit of these files, or '' if they are.

        Every row belongs to a unit of work, whose key says on which files, with which settings and
        on which split it was measured. That finds rows that were written or copied into the file
        by hand, not those of a forger who knows how the keys are made.

        Args:
            split: The split that the run measured on, as its record has it.
        """
        units = self.content.get('units') or {}
        of_unit: dict[str, list[dict]] = {}
        for row in self.content.get('rows') or []:
            name, measure = row.get('unit'), row['measure']
            unit = units.get(name)
            if unit is None and (name is not None or not _DERIVED.fullmatch(measure)):
                return (
                    f'audit.json has a value of {measure} ({row["model"]}) that no audit measured'
                )
            if unit is not None:
                of_unit.setdefault(name, []).append(row)
                if name.partition(':')[2] != row['model'] or unit['key'] != unit_key(
                    name, self.content, split
                ):
                    return f'audit.json has a value of {measure} that was measured on other files'
        for name, rows in of_unit.items():
            if units[name].get('rows', digest(rows)) != digest(rows):
                return f'the values of {name} in audit.json were changed after they were measured'
        return ''


def unit_key(name: str, content: Mapping[str, Any], split: str | None) -> str:
    """Hash of everything that the rows of a unit such as 'probe:oracle' depend on.

    Args:
        name: Of the unit.
        content: ``data``, ``forgotten_classes``, ``files`` and ``settings`` of the audit.
        split: The split that the run measured on, as its record has it.
    """
    unit, _, model = name.partition(':')
    files, settings = content.get('files') or {}, dict(content.get('settings') or {})
    roles = {model}
    if unit == 'divergence':
        roles.add(ORACLE)
    if model == UNSEEN:
        roles.add(ORIGINAL)
    if unit.startswith('relearning'):
        settings.pop('relearning_images', None)  # each k is a unit of its own
    hashes = {role: files[role]['sha256'] for role in roles if role in files}
    about = [unit, content.get('data'), content.get('forgotten_classes'), split, settings, hashes]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Hash of the values of a unit, whatever the order of its rows."""
    lines = sorted(json.dumps([r['measure'], r.get('seed'), r['value']]) for r in rows)
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def curve_point(measure: str) -> tuple[int, int] | None:
    """(images, step) of a measure such as 'relearning/k16/step20', None of any other."""
    match = re.fullmatch(r'[^/]+/[^/\d]*(\d+)/[^/\d]*(\d+)', measure)
    return (int(match[1]), int(match[2])) if match else None
