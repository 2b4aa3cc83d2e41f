"""Which transformer blocks each task selected: the data of the figure's map and of the page's."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from mmgslora.records.record import number, tasks_of


@dataclass(frozen=True)
class GroupMap:
    """The norms of a run.

    Attributes:
        groups: Full names of the LoRA groups, one per row.
        tasks: Task numbers, one per column.
        norms: (groups, tasks) penalised norms; NaN where a task did not have the group.
        relative: The norms divided by their column's largest, 0 in a column of zeros.
        zero: (groups, tasks) True where the norm is exactly 0.0: the block was not touched.
    """

    groups: list[str]
    tasks: list[int]
    norms: np.ndarray
    relative: np.ndarray
    zero: np.ndarray


def group_map(record: dict) -> GroupMap:
    """The norms that a record holds, groups in the order in which it names them."""
    tasks = tasks_of(record)
    groups = list(dict.fromkeys(name for task in tasks for name in task.get('groups') or {}))
    norms = np.full((len(groups), len(tasks)), np.nan)
    for column, task in enumerate(tasks):
        for name, norm in (task.get('groups') or {}).items():
            value = number(norm)
            norms[groups.index(name), column] = np.nan if value is None else value
    largest = np.nanmax(np.nan_to_num(norms), axis=0, initial=0.0)
    relative = norms / np.where(largest > 0, largest, 1.0)
    return GroupMap(groups, [task['task'] for task in tasks], norms, relative, norms == 0.0)


def short_group_names(groups: list[str]) -> list[str]:
    """Module paths without what they all share: 'encoder.layers.0.ffn' is 'encoder 0'."""
    parts = [name.split('.') for name in groups]
    if len(parts) < 2:
        return list(groups)
    start = len(os.path.commonprefix(parts))
    end = len(os.path.commonprefix([p[start:][::-1] for p in parts]))
    short = [' '.join(w for w in p[start : len(p) - end] if w != 'layers') for p in parts]
    if any(name[:1].isdigit() for name in short):
        # A bare number says nothing: put back the last word they share.
        word = next((word for word in parts[0][:start][::-1] if word != 'layers'), 'layer')
        short = [f'{word} {name}' for name in short]
    return short if len(set(short)) == len(short) and all(short) else list(groups)
