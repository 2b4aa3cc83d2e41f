"""Reading a run's ``audit.json``: one number per model, measure and seed, brought together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mmgslora.errors import ForgettingError
from mmgslora.report.record import number

MODEL_NAMES = {
    'original': 'before forgetting',
    'unlearned': 'after forgetting',
    'head only': 'head only (nothing trained)',
    'oracle': 'oracle (never saw them)',
}


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
    the classes); any other name is a baseline. Measures are paths, the first word names the audit.

    Args:
        content: What ``audit.json`` holds.
        name: How errors call the file.

    Raises:
        ForgettingError: A row lacks its model, measure or value.
    """

    def __init__(self, content: dict[str, Any], name: str = 'audit.json') -> None:
        self.content = content
        self.task: int | None = content.get('task')
        self.forgotten: list[str] = content.get('forgotten_classes') or []
        self.nearest: dict[str, str] = content.get('nearest') or {}
        found: dict[str, dict[str, list[float]]] = {}
        for row in content.get('rows') or []:
            try:
                values = found.setdefault(row['measure'], {}).setdefault(row['model'], [])
                value = number(row['value'])
            except (KeyError, TypeError) as error:
                raise ForgettingError(
                    f'A row of {name!r} is {row!r}; it must have a model, a measure and a value '
                    'that is a number or null.'
                ) from error
            if value is not None:
                values.append(value)
        self._values = found
        rank = {'original': 0, 'unlearned': 1, 'oracle': 3}
        names = dict.fromkeys(m for of_models in found.values() for m in of_models)
        self.models: list[str] = sorted(names, key=lambda m: rank.get(m, 2))

    @property
    def measures(self) -> list[str]:
        """All measures, in the order of the file."""
        return list(self._values)

    def of(self, kind: str) -> list[str]:
        """The measures whose first word is ``kind``."""
        return [name for name in self._values if name.split('/')[0] == kind]

    def value(self, measure: str, model: str) -> Spread | None:
        """Mean, lowest and highest over the seeds; None where nothing was measured."""
        values = self._values.get(measure, {}).get(model)
        if not values:
            return None
        return Spread(fmean(values), min(values), max(values), len(values))

    def gap(self, measure: str) -> float | None:
        """By how much the forgetting model's mean lies above the oracle's."""
        unlearned, oracle = self.value(measure, 'unlearned'), self.value(measure, 'oracle')
        return unlearned.mean - oracle.mean if unlearned and oracle else None

    @property
    def has_oracle(self) -> bool:
        """Whether any measure can be compared with an oracle."""
        return any(self.gap(measure) is not None for measure in self._values)

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


def curve_point(measure: str) -> tuple[int, int] | None:
    """(images, step) of a measure such as 'relearning/k16/step20', None of any other."""
    match = re.fullmatch(r'[^/]+/[^/\d]*(\d+)/[^/\d]*(\d+)', measure)
    return (int(match[1]), int(match[2])) if match else None
