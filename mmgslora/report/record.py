"""Reading a run's ``forgetting.json``: the few derived values that table and figure share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgslora.errors import ForgettingError
from mmgslora.report.format import short


@dataclass(frozen=True)
class ClassChange:
    """What became of one class: its value now and before any forgetting, in percent."""

    name: str
    now: float
    before: float

    @property
    def share(self) -> float:
        """The part of the pre-trained value that is left, 1.0 for all of it."""
        return self.now / self.before


def method_name(record: dict) -> str | None:
    """The class name of the method that forgot; None in a record that does not say."""
    return (record.get('method') or {}).get('type')


def run_title(record: dict) -> str:
    """What tells one run from another: config, method, seed."""
    parts = [Path(record.get('config') or '').name, method_name(record)]
    return ', '.join([*filter(None, parts), f'seed {record.get("seed")}'])


def run_settings(record: dict) -> list[tuple[str, str]]:
    """Method and what it trains, with their settings, as far as the record has them."""
    tune = {k: v for k, v in (record.get('tune') or {}).items() if k != 'targets'}  # many names
    settings = {'Method': record.get('method'), 'Trained': tune}
    return [(name, short(value)) for name, value in settings.items() if value]


def number(value: Any) -> float | None:
    """The value as a float; None where nothing was measured (absent, null or NaN)."""
    if value is None or math.isnan(value):
        return None
    return float(value)


def tasks_of(record: dict) -> list[dict]:
    """The finished forgetting tasks.

    Raises:
        ForgettingError: The record holds none, so there is nothing to report.
    """
    tasks = record.get('tasks') or []
    if not tasks:
        raise ForgettingError(
            'The record holds no finished forgetting task; a report needs at least one.'
        )
    return tasks


def unfinished(record: dict) -> str:
    """One sentence where the run has requests that it did not serve yet, else ''."""
    planned, done = len((record.get('protocol') or {}).get('tasks') or []), len(tasks_of(record))
    if planned <= done:
        return ''
    return (
        f'The run is unfinished: {done} of its {planned} requests {"is" if done == 1 else "are"} '
        'served, and nothing is known of the others.'
    )


def merged_file(task: int) -> str:
    """Path of a task's merged checkpoint below the work_dir."""
    return f'merged/task_{task:02d}.pth'


def metric_prefix(record: dict) -> str:
    """What stands before ``f``, ``r``, ``o`` in the metrics' names: 'AP_', 'Acc_', ...

    Raises:
        ForgettingError: No task has both a forget and a retain metric.
    """
    for task in tasks_of(record):
        metrics = task['metrics']
        for key in metrics:
            # 'paper/AP_f' is the same metric measured in another way, not another prefix.
            match = re.fullmatch(r'(\w+_)f', key)
            if match and f'{match[1]}r' in metrics:
                return match[1]
    raise ForgettingError(
        'The metrics of the record name no pair such as AP_f and AP_r; '
        f'they are: {", ".join(tasks_of(record)[0]["metrics"]) or "none"}.'
    )


def metric(task: dict, key: str) -> float | None:
    """One metric of a task, None where it was not measured."""
    return number(task['metrics'].get(key))


def found_keys(tasks: list[dict]) -> list[str]:
    """Metrics of forgotten classes still being found: 'AR_f@0.3', ..., strictest first, 'Named'."""
    keys = {key for task in tasks for key in task['metrics']}
    recalls = (key for key in keys if key.startswith('AR_f@'))
    return sorted(recalls, key=lambda key: -float(key.split('@')[1])) + sorted(keys & {'Named'})


def values_before(record: dict, gone: bool = False) -> dict[str, Any]:
    """The pre-trained model's value of each class, in percent.

    Args:
        record: The content of a run's ``forgetting.json``.
        gone: Measured as classes that must be gone are, with every query of a detector counted.
    """
    pretrained = record['pretrained']
    if gone:
        return {**pretrained['per_class'], **pretrained.get('every_query/per_class', {})}
    return pretrained['per_class']


def mean_before(record: dict, names: Iterable[str], gone: bool = False) -> float | None:
    """The pre-trained model's mean over the named classes, None if none was measured.

    Args:
        record: The content of a run's ``forgetting.json``.
        names: The classes.
        gone: See :func:`values_before`.
    """
    return _mean(values_before(record, gone), names)


def share_kept(record: dict, task: dict) -> float | None:
    """What the retained classes keep of their own pre-trained mean after ``task``.

    Both means are taken over the same classes with equal weights: a metric that weighs
    by images (accuracy) would otherwise be compared with one that does not.
    """
    before_all = record['pretrained']['per_class']
    both = [
        name
        for name in task['retain']
        if number(task['per_class'].get(name)) is not None
        and number(before_all.get(name)) is not None
    ]
    now, before = _mean(task['per_class'], both), _mean(before_all, both)
    return now / before if before else None


def hardest_hit(record: dict, task: dict) -> ClassChange | None:
    """The class that must stay and kept the smallest share of its own pre-trained value.

    Classes with and without training data both must stay, so both are looked at. A class
    the pre-trained model did not know either (0 %) has nothing to lose and is left out.
    """
    before_all = record['pretrained']['per_class']
    changes = []
    for name in [*task['retain'], *task.get('missing', [])]:
        now, before = number(task['per_class'].get(name)), number(before_all.get(name))
        if now is not None and before:
            changes.append(ClassChange(name, now, before))
    return min(changes, key=lambda change: change.share, default=None)


def _mean(per_class: dict[str, Any], names: Iterable[str]) -> float | None:
    values = [v for v in (number(per_class.get(name)) for name in names) if v is not None]
    return sum(values) / len(values) if values else None
