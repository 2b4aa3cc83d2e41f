"""Reading a run's ``forgetting.json``: the derived values that verdict, table and page share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmgslora.errors import ForgettingError
from mmgslora.report.format import short


def run_title(record: dict) -> str:
    """What tells one run from another: config, method, seed."""
    method = (record.get('method') or {}).get('type')
    parts = [Path(record.get('config') or '').name, method]
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


def sealed_file(task: int) -> str:
    """Path of a task's sealed checkpoint below the work_dir."""
    return f'sealed/task_{task:02d}.pth'


def adapter_folder(task: int) -> str:
    """Path of the folder of a task's adapter below the work_dir."""
    return f'adapters/task_{task:02d}'


def class_groups(task: dict) -> dict[str, list[str]]:
    """What every class is in a task, under the letter of its group."""
    keys = dict(r='retain', m='missing', f='forget', o='old')
    return {letter: task.get(key) or [] for letter, key in keys.items()}


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


NAME_RATE = 'forgotten_name_rate'


def found_keys(tasks: list[dict]) -> list[str]:
    """Metrics of forgotten classes still being found: 'AR_f@0.3', ..., strictest first."""
    keys = {key for task in tasks for key in task['metrics']}
    recalls = (key for key in keys if key.startswith('AR_f@'))
    return sorted(recalls, key=lambda key: -float(key.split('@')[1])) + sorted(keys & {NAME_RATE})


def values_before(record: dict, gone: bool = False) -> dict[str, Any]:
    """The pre-trained model's value of each class, in percent.

    Args:
        record: The content of a run's ``forgetting.json``.
        gone: Measured as classes that must be gone are, with every query of a detector counted.
    """
    pretrained = record['pretrained']
    every_query = pretrained.get('every_query/per_class', {}) if gone else {}
    return {**pretrained['per_class'], **every_query}


def mean_of(per_class: dict[str, Any], names: Iterable[str]) -> float | None:
    """The mean over those of the named classes that were measured, None if none was."""
    values = [v for v in (number(per_class.get(name)) for name in names) if v is not None]
    return sum(values) / len(values) if values else None


def mean_before(record: dict, names: Iterable[str], gone: bool = False) -> float | None:
    """The pre-trained model's mean over the named classes; see :func:`values_before`."""
    return mean_of(values_before(record, gone), names)


def share_kept(record: dict, task: dict, names: Iterable[str] | None = None) -> float | None:
    """What classes keep of their own pre-trained mean after ``task``; by default the retained ones.

    Both means are taken over the same classes with equal weights: a metric that weighs
    by images (accuracy) would otherwise be compared with one that does not.
    """
    before_all, now_all = values_before(record), task['per_class']
    both = [
        name
        for name in (task['retain'] if names is None else names)
        if None not in (number(now_all.get(name)), number(before_all.get(name)))
    ]
    before = mean_of(before_all, both)
    return mean_of(now_all, both) / before if before else None


def hardest_hit(record: dict, task: dict, known_from: float = 0.0) -> dict[str, Any] | None:
    """The class that must stay and kept the smallest share of its own pre-trained value.

    Classes with and without training data both must stay, so both are looked at. A class
    the pre-trained model did not know either has nothing to lose and is left out.

    Args:
        record: The content of ``forgetting.json``.
        task: The task's entry in it.
        known_from: What the pre-trained model has of a class that it knows is more than this, in
            percent. Defaults to 0.

    Returns:
        Its ``name``, its value ``now`` and ``before``, in percent, and their quotient ``share``.
    """
    hits = []
    for name in [*task['retain'], *task.get('missing', [])]:
        now, before = number(task['per_class'].get(name)), number(values_before(record).get(name))
        if None not in (now, before) and before > known_from:
            hits.append(dict(name=name, now=now, before=before, share=now / before))
    return min(hits, key=lambda hit: hit['share'], default=None)


def task_summary(record: dict, task: dict) -> dict[str, Any]:
    """A task's line in table and page: each value beside the pre-trained one it compares with.

    Returns:
        ``f``, ``r``, ``o``, ``m`` and ``h`` with ``f_before``, ..., ``share`` of AP_r that is
        kept, ``found`` (see :func:`found_keys`), ``hit`` (see :func:`hardest_hit`), ``zero`` and
        ``groups``, how many blocks were left untouched and how many there are, and ``seconds``.
    """
    prefix, groups = metric_prefix(record), task.get('groups') or {}
    line = dict(task=task['task'], forget=task['forget'], h=metric(task, 'H'))
    for letter, names in class_groups(task).items():
        line[letter] = metric(task, f'{prefix}{letter}')
        line[f'{letter}_before'] = mean_before(record, names, gone=letter in 'fo')
    return dict(
        line,
        share=share_kept(record, task),
        found=[metric(task, key) for key in found_keys(tasks_of(record))],
        hit=hardest_hit(record, task),
        zero=sum(norm == 0.0 for norm in groups.values()),
        groups=len(groups),
        seconds=number(task.get('train_seconds')),
    )
