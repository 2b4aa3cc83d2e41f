"""What ``forgetting.json`` and ``audit.json`` must hold to be believed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmgslora.errors import ForgettingError
from mmgslora.records.record import class_groups, mean_of, metric, metric_prefix, number

Values = dict[str, float | None]
# Means of classes, in percent; Drop and H are not, nor what is measured of faces.
_PERCENT = re.compile(r'(.*/)?\w+_[from](@[\d.]+)?|forgotten_name_rate')


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _File(_Strict):
    path: str | None = None
    sha256: str | None = None


class _Ended(_Strict):
    epochs: int
    served: bool
    forget_score: float | None = None
    drift: float | None = None


class _Task(_Strict):
    task: int
    forget: list[str] = Field(min_length=1)
    retain: list[str]
    old: list[str]
    missing: list[str] = []
    per_class: Values
    metrics: dict[str, float | Values | None]
    groups: Values | None = None
    trainable_params: int | None = None
    total_params: int | None = None
    train_images: dict[str, int] | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    prepare_seconds: float | None = None
    ended: _Ended | None = None
    merged: _File | None = None


class _Pretrained(_Strict):
    per_class: Values
    every_query: Values = Field({}, alias='every_query/per_class')


class _Protocol(_Strict):
    tasks: list[list[str]] = []


class Record(_Strict):
    """``forgetting.json``; what is not named here is free."""

    tasks: list[_Task] = []
    pretrained: _Pretrained | None = None
    config: str | None = None
    seed: int | None = None
    original: str | None = None
    original_url: str | None = None
    original_sha256: str | None = None
    original_training: dict[str, Any] | None = None
    split: str | None = None
    protocol: _Protocol | None = None
    method: dict[str, Any] | None = None
    tune: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    images: str | None = None


class _Unit(_Strict):
    key: str
    rows: str | None = None


class Audit(_Strict):
    """``audit.json``."""

    rows: list[Any] = []
    task: int | None = None
    forgotten_classes: list[str] = []
    files: dict[str, _File] = {}
    units: dict[str, _Unit] = {}
    nearest: dict[str, str] = {}
    settings: dict[str, Any] | None = None
    cannot_conclude: list[str] = []


def read_json(path: Path, schema: type[BaseModel] | None = None) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        ForgettingError: The file is no JSON, something else than an object, or what stands in it
            is not of the kind that the schema says.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ForgettingError(f'{str(path)!r} cannot be read as JSON: {error}.') from error
    if not isinstance(content, dict):
        raise ForgettingError(
            f'{str(path)!r} holds a {type(content).__name__}; it must hold a JSON object.'
        )
    try:
        (schema or _Strict).model_validate(content)
    except ValidationError as error:
        first, place, found = error.errors()[0], [], content
        for part in first['loc']:  # which ends in the names of pydantic's own choices
            inside = isinstance(found, dict) and part in found or isinstance(found, list)
            if not inside and first['type'] != 'missing':
                break
            place.append(str(part))
            found = found[part] if inside else None
        raise ForgettingError(
            f'{str(path)!r} has {json.dumps(found)[:80]} as {".".join(place)}; '
            f'{first["msg"][:1].lower()}{first["msg"][1:]}.'
        ) from error
    return content


def check_consistency(record: dict, name: str) -> None:
    """Refuse a record that no run can have written.

    Args:
        record: The content of ``forgetting.json``, as :class:`Record` has it.
        name: How errors call the file.

    Raises:
        ForgettingError: Tasks are not numbered in order, a task is not the protocol's, its classes
            are not those of the other tasks, a value is no percentage, or a mean is not one.
    """
    if not record.get('pretrained'):
        raise ForgettingError(
            f'{name!r} holds no values of the pre-trained model (pretrained.per_class), which '
            'everything is compared with.'
        )
    tasks, prefix = record['tasks'], metric_prefix(record)
    planned = (record.get('protocol') or {}).get('tasks') or [task['forget'] for task in tasks]
    all_names, gone = None, tasks[0]['old']
    measured = record['pretrained']['per_class'].keys()
    for place, task in enumerate(tasks, 1):
        n, wrong = task['task'], ''
        names = [name for group in class_groups(task).values() for name in group]
        all_names = all_names or set(names)
        changed = sorted({*names} ^ all_names) or sorted(task['per_class'].keys() ^ measured)
        if n != place:
            wrong = f'task {n} in the place of task {place}; tasks must be numbered in order'
        elif place > len(planned) or {*task['forget']} != {*planned[place - 1]}:
            wrong = f'a task {n} that the protocol does not have, of {", ".join(task["forget"])}'
        elif changed or len(names) != len({*names}) or not task['per_class'].keys() <= all_names:
            one = changed[0] if changed else max([*names, *task['per_class']], key=names.count)
            wrong = f'other classes in task {n} than elsewhere, or one of them twice: {one!r}'
        elif {*task['old']} != {*gone}:
            wrong = f'other old classes in task {n} than the tasks before it forgot'
        wrong = wrong or _wrong_value(task, prefix)
        if wrong:
            raise ForgettingError(f'{name!r} has {wrong}; no run writes that.')
        gone = [*gone, *task['forget']]


def _wrong_value(task: dict, prefix: str) -> str:
    means = {k: v for k, v in task['metrics'].items() if _PERCENT.fullmatch(k)}
    for key, value in {**means, **task['per_class']}.items():
        if (value := number(value)) is not None and not -1e-6 <= value <= 100 + 1e-6:
            return f'{value:g} as {key} of task {task["task"]}, which is a percentage'
    mean, found = mean_of(task['per_class'], task['forget']), metric(task, f'{prefix}f')
    if None not in (mean, found) and abs(mean - found) > 1e-3:
        return f'{found:g} as {prefix}f of task {task["task"]}, the mean of its classes is {mean:g}'
    return ''
