"""The forgetting run as one figure: what was forgotten, and which blocks did it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation

from mmgslora.report.png import write_png
from mmgslora.report.record import (
    mean_before,
    metric,
    metric_prefix,
    number,
    run_title,
    tasks_of,
)

# From the Okabe-Ito palette: told apart with every common kind of colour blindness. Marker and
# dash differ too, for lines that lie on each other near zero and for print without colour.
_SERIES = {
    'r': ('retained', '#0072B2', 'o', '-'),
    'm': ('missing', '#009E73', 'D', '-'),
    'f': ('forgotten now', '#D55E00', 's', '-'),
    'o': ('forgotten earlier', '#8A4F7D', '^', '--'),
}
# From a task's own classes before any forgetting down to what is left of them.
_FALL = {
    'color': _SERIES['f'][1],
    'linestyle': ':',
    'linewidth': 1,
    'marker': _SERIES['f'][2],
    'markersize': 5,
    'markerfacecolor': 'white',
}
_INK = '#333333'
_FAINT = '#767676'
# Starts well away from white: the smallest selected block must not look like an untouched one.
_NORMS = LinearSegmentedColormap.from_list('norms', ['#b9d7ea', '#5ba3d0', '#1764ab', '#08306b'])
_UNTOUCHED = {'facecolor': '#fbfbf7', 'edgecolor': '#d0d0c8', 'hatch': '////'}


@dataclass(frozen=True)
class GroupMap:
    """Which transformer blocks each task selected.

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
    """The data of the figure's map, groups in the order in which the record names them."""
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


def forgetting_figure(record: dict) -> Figure:
    """What the tasks did to the metrics (left) and to the transformer's blocks (right).

    Args:
        record: The content of a run's ``forgetting.json``.

    Raises:
        ForgettingError: The record holds no task or no forget and retain metric.
    """
    blocks = group_map(record)
    columns, rows = len(blocks.tasks), len(blocks.groups)
    left_width = min(4.6 + 0.16 * columns, 7.0)
    if not rows:
        figure = Figure(figsize=(left_width + 0.6, 4.2), layout='constrained', facecolor='white')
        _draw_metrics(figure.subplots(), record)
        _draw_title(figure, record)
        return figure

    labels = short_group_names(blocks.groups)
    # A cell stays large enough for its '0', a row for its name.
    map_width = max(0.40 * columns, 1.6)
    names_width = 0.085 * max(map(len, labels))
    right_width = map_width + names_width + 1.5
    height = max(4.2, 0.24 * rows + 1.9)
    figure = Figure(
        figsize=(left_width + right_width, height), layout='constrained', facecolor='white'
    )
    figure.get_layout_engine().set(wspace=0.06)
    left, right = figure.subplots(1, 2, width_ratios=[left_width, right_width])
    _draw_metrics(left, record)
    _draw_map(figure, right, blocks, labels)
    _draw_title(figure, record)
    return figure


def _draw_title(figure: Figure, record: dict) -> None:
    # A name is text, whatever signs it has: '$' would begin a formula.
    figure.suptitle(run_title(record), fontsize=9, color=_FAINT, parse_math=False)


def plot_forgetting(record: dict, path: str | os.PathLike[str]) -> Path:
    """Draw :func:`forgetting_figure` into a PNG file.

    Args:
        record: The content of a run's ``forgetting.json``.
        path: The file to write, usually ``forgetting.png`` beside the record.

    Returns:
        The path written.
    """
    return write_png(forgetting_figure(record), path)


def short_group_names(groups: list[str]) -> list[str]:
    """Module paths without what they all share: 'encoder.layers.0.ffn' is 'encoder 0'."""
    parts = [name.split('.') for name in groups]
    if len(parts) < 2:
        return list(groups)
    shared_end = 0
    while len({tuple(p[-shared_end - 1 :]) for p in parts}) == 1:
        shared_end += 1
    shared_start = 0
    while len({tuple(p[: shared_start + 1]) for p in parts}) == 1:
        shared_start += 1
    start = parts[0][:shared_start]
    short = [
        ' '.join(word for word in p[shared_start : len(p) - shared_end] if word != 'layers')
        for p in parts
    ]
    if any(name[:1].isdigit() for name in short):
        # A bare number says nothing: put back the last word they share.
        word = next((word for word in reversed(start) if word != 'layers'), 'layer')
        short = [f'{word} {name}' for name in short]
    return short if len(set(short)) == len(short) and all(short) else list(groups)


def _draw_metrics(axes: Axes, record: dict) -> None:
    tasks = tasks_of(record)
    prefix = metric_prefix(record)
    x = np.arange(len(tasks) + 1)
    first = tasks[0]
    before = {
        'r': mean_before(record, first['retain']),
        'm': mean_before(record, first.get('missing', [])),
        'f': mean_before(record, first['forget'], gone=True),
        'o': None,
    }

    labels = []
    for key, (meaning, colour, marker, dash) in _SERIES.items():
        values = [metric(task, f'{prefix}{key}') for task in tasks]
        if all(value is None for value in values):
            continue
        y = np.array([np.nan if v is None else v for v in [before[key], *values]])
        axes.plot(
            x,
            y,
            dash,
            color=colour,
            marker=marker,
            markersize=6,
            markerfacecolor='white' if key == 'o' else colour,
            linewidth=2,
            clip_on=False,
            zorder=4 if key == 'o' else 3,
            label=f'{prefix}{key}',
        )
        last = np.flatnonzero(~np.isnan(y))[-1]
        labels.append((f'{prefix}{key} {y[last]:.1f}', meaning, colour, float(y[last])))

    # The classes of a task change from task to task; only their own start makes a drop readable.
    starts = [mean_before(record, task['forget'], gone=True) for task in tasks]
    for task_x, start, task in zip(x[2:], starts[1:], tasks[1:]):
        now = metric(task, f'{prefix}f')
        if start is None or now is None:
            continue
        axes.plot([task_x] * 2, [now, start], zorder=1, clip_on=False, markevery=[1], **_FALL)
    kept = [mean_before(record, task['retain']) for task in tasks]
    reference = [np.nan if v is None else v for v in [kept[0], *kept]]
    axes.plot(x, reference, '--', color=_FAINT, linewidth=1.2, zorder=1)

    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    highest = np.max(drawn[~np.isnan(drawn)], initial=0.0)
    top = min(100.0, 20.0 * math.ceil((highest + 4) / 20))
    axes.set_ylim(0, top)
    axes.set_xlim(0, len(tasks))
    axes.set_xticks(x, ['0', *(str(task['task']) for task in tasks)])
    # Below its tick and not as its label, where it would reach under the next task's number.
    axes.annotate(
        'pre-trained',
        (0, 0),
        xycoords='axes fraction',
        xytext=(0, -19),
        textcoords='offset points',
        ha='center',
        va='top',
        color=_INK,
    )
    axes.set_xlabel('forgetting task', color=_INK)
    axes.set_ylabel(f'{prefix[:-1]} (%)', color=_INK)
    axes.grid(axis='y', color='#e4e4e4', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color('#aaaaaa')
    axes.tick_params(colors=_INK, length=3)
    axes.set_title('What was forgotten, what stayed', loc='left', fontsize=11, color=_INK)

    # Two lines of text; what stands around the axes takes about 1.4 inches.
    gap = top * 0.33 / (axes.figure.get_figheight() - 1.4)
    heights = spread([label[3] for label in labels], gap, 0.02 * top, 0.96 * top)
    for (value, meaning, colour, _), y in zip(labels, heights):
        axes.annotate(
            f'{value}\n{meaning}',
            (len(tasks), y),
            xytext=(9, 0),
            textcoords='offset points',
            color=colour,
            fontsize=9,
            va='center',
            linespacing=1.05,
            annotation_clip=False,
        )
    handles = [Line2D([], [], color=_FAINT, linestyle='--', linewidth=1.2)]
    texts = ['same retained classes, pre-trained']
    if len(tasks) > 1:
        handles.append(Line2D([], [], **_FALL))
        texts.append("this task's forgotten classes, pre-trained")
    _legend_below(axes, handles, texts)


def _draw_map(figure: Figure, axes: Axes, blocks: GroupMap, labels: list[str]) -> None:
    shown = np.ma.masked_where(blocks.zero | np.isnan(blocks.relative), blocks.relative)
    image = axes.imshow(shown, cmap=_NORMS, vmin=0, vmax=1, aspect='auto', interpolation='nearest')
    for row, column in zip(*np.nonzero(blocks.zero)):
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, gid='zero group', **_UNTOUCHED)
        )
        axes.text(
            column,
            row,
            '0',
            ha='center',
            va='center',
            fontsize=8,
            color=_INK,
            bbox={'boxstyle': 'round,pad=0.12', 'facecolor': _UNTOUCHED['facecolor'], 'ec': 'none'},
        )
    rows, columns = blocks.relative.shape
    axes.set_yticks(range(rows), labels, fontsize=8)
    axes.set_xticks(range(columns), [str(task) for task in blocks.tasks])
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which='minor', color='white', linewidth=1.5)
    axes.tick_params(which='both', length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel('forgetting task', color=_INK)
    axes.set_title('Blocks each task selected', loc='left', fontsize=11, color=_INK)

    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03, aspect=30)
    bar.set_label("LoRA norm / task's largest", fontsize=8, color=_INK)
    bar.ax.tick_params(labelsize=8, colors=_INK, length=2)
    bar.outline.set_visible(False)
    _legend_below(
        axes,
        [Patch(**_UNTOUCHED)],
        [f'0: left exactly untouched ({blocks.zero.sum()} of {blocks.zero.size})'],
    )


def _legend_below(axes: Axes, handles: list[Artist], texts: list[str]) -> None:
    # In inches below the axis, not in parts of its height: the same in low and high figures.
    below = axes.transAxes + ScaledTranslation(0, -0.55, axes.figure.dpi_scale_trans)
    axes.legend(
        handles,
        texts,
        loc='upper left',
        bbox_to_anchor=(0, 0),
        bbox_transform=below,
        borderaxespad=0,
        fontsize=8,
        frameon=False,
        labelcolor=_INK,
    )


def spread(values: list[float], gap: float, low: float, high: float) -> list[float]:
    """The values moved as little as needed to stand at least ``gap`` apart, in their order.

    Args:
        values: Wanted positions.
        gap: Smallest distance between two neighbours.
        low: Lowest position allowed.
        high: Highest position allowed.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [0.0] * len(values)
    floor = low
    for i in order:
        placed[i] = max(values[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
