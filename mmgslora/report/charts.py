"""Every chart of a run, for its PNG files and for the page alike."""

from __future__ import annotations

import base64
import io
import logging
import math
import os
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation
from mmengine.logging import print_log

from mmgslora.atomic import replacing
from mmgslora.audit.rows import MODEL_NAMES, OUTCOMES, AuditRows, Spread
from mmgslora.records.record import (
    class_groups,
    mean_before,
    metric,
    metric_prefix,
    number,
    run_title,
    tasks_of,
    values_before,
)
from mmgslora.report.blocks import GroupMap, group_map, short_group_names

DPI = 150
INK = '#333333'
_SOFT = '#767676'
_PALE = '#cfcfc8'
_NAMES = 90  # of classes, upright in the smallest size, that stand side by side
# From the Okabe-Ito palette: told apart with every common kind of colour blindness. Marker and
# dash differ too, for lines that lie on each other near zero and for print without colour.
_SERIES = {
    'r': ('retained', '#0072B2', 'o', '-'),
    'm': ('missing', '#009E73', 'D', '-'),
    'f': ('forgotten now', '#D55E00', 's', '-'),
    'o': ('forgotten earlier', '#8A4F7D', '^', '--'),
}
_MODELS = {
    'original': ('#8c8c84', 'o', ':'),
    'unlearned': ('#D55E00', 's', '-'),
    'oracle': ('#0072B2', 'D', '--'),
}
_OTHER_MODELS = ('#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#F0E442', '#000000')
_OUTCOMES = dict(zip(OUTCOMES, ('#D55E00', '#E69F00', '#56B4E9', _PALE)))
# From a task's own classes before any forgetting down to what is left of them.
_FALL = dict(color='#D55E00', ls=':', lw=1, marker='s', markersize=5, markerfacecolor='white')
# Starts well away from white: the smallest selected block must not look like an untouched one.
_NORMS = LinearSegmentedColormap.from_list('norms', ['#b9d7ea', '#5ba3d0', '#1764ab', '#08306b'])
_UNTOUCHED = dict(facecolor='#fbfbf7', edgecolor='#d0d0c8', hatch='////')


def as_text(text: object) -> str:
    """Text that matplotlib shows as it is; a bare ``$`` would begin a formula."""
    return str(text).replace('$', r'\$')


def write_image(path: str | os.PathLike[str], draw: Callable[[], Figure]) -> None:
    """Draw a PNG file; whatever goes wrong costs this image, with one line in the log, no more.

    Args:
        path: The file; it holds its old content or the new image, whole.
        draw: Makes the figure.
    """
    try:
        with replacing(path) as draft:
            draw().savefig(draft, dpi=DPI)
    except Exception as error:  # fonts, sizes, names, files: it can fail in any way
        why = ' '.join(str(error).split()) or type(error).__name__
        print_log(f'{path} was not drawn: {why}', logger='current', level=logging.WARNING)


def as_svg(figure: Figure) -> str:
    """A figure as the address of an image; its text stays text, in the fonts of who reads it."""
    file = io.BytesIO()
    with rc_context({'svg.fonttype': 'none'}):
        figure.savefig(file, format='svg', metadata=dict(Date=None))
    return 'data:image/svg+xml;base64,' + base64.b64encode(file.getvalue()).decode()


def forgetting_figure(record: dict) -> Figure:
    """What the tasks did to the metrics (left) and to the transformer's blocks (right).

    Args:
        record: The content of a run's ``forgetting.json``.

    Raises:
        ForgettingError: The record holds no task or no forget and retain metric.
    """
    blocks = group_map(record)
    columns, rows = len(blocks.tasks), len(blocks.groups)
    labels = short_group_names(blocks.groups)
    widths, height = [min(4.6 + 0.16 * columns, 7.0)], 4.2
    if rows:
        # A cell stays large enough for its '0', a row for its name.
        widths.append(max(0.40 * columns, 1.6) + 0.085 * max(map(len, labels)) + 1.5)
        height = max(height, 0.24 * rows + 1.9)
    figure = _figure(max(sum(widths), 5.2), height)
    figure.get_layout_engine().set(wspace=0.06)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _draw_metrics(axes[0], record)
    if rows:
        _draw_map(axes[1], blocks, labels)
    figure.suptitle(run_title(record), fontsize=9, color=_SOFT, parse_math=False)
    return figure


def _draw_metrics(axes: Axes, record: dict) -> None:
    tasks, prefix = tasks_of(record), metric_prefix(record)
    x = np.arange(len(tasks) + 1)
    first = tasks[0]
    before = {
        'r': mean_before(record, first['retain']),
        'm': mean_before(record, first.get('missing', [])),
        'f': mean_before(record, first['forget'], gone=True),
    }
    labels = []
    for key, (meaning, colour, marker, dash) in _SERIES.items():
        values = [metric(task, f'{prefix}{key}') for task in tasks]
        if all(value is None for value in values):
            continue
        y = np.array([np.nan if v is None else v for v in [before.get(key), *values]])
        face = 'white' if key == 'o' else colour
        style = dict(color=colour, marker=marker, markerfacecolor=face, lw=2, clip_on=False)
        axes.plot(x, y, dash, zorder=4 if key == 'o' else 3, label=f'{prefix}{key}', **style)
        last = y[~np.isnan(y)][-1]
        labels.append((f'{prefix}{key} {last:.1f}\n{meaning}', colour, float(last)))

    # The classes of a task change from task to task; only their own start makes a drop readable.
    for n, task in list(enumerate(tasks, 1))[1:]:
        start, now = mean_before(record, task['forget'], gone=True), metric(task, f'{prefix}f')
        if start is not None and now is not None:
            axes.plot([n, n], [now, start], zorder=1, clip_on=False, markevery=[1], **_FALL)
    kept = [mean_before(record, task['retain']) for task in tasks]
    reference = [np.nan if v is None else v for v in [kept[0], *kept]]
    axes.plot(x, reference, '--', color=_SOFT, lw=1.2, zorder=1)

    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    highest = np.max(drawn[~np.isnan(drawn)], initial=0.0)
    top = min(100.0, 20.0 * math.ceil((highest + 4) / 20))
    axes.set(ylim=(0, top), xlim=(0, len(tasks)))
    axes.set_xticks(x, ['0', *(str(task['task']) for task in tasks)])
    # Below its tick and not as its label, where it would reach under the next task's number.
    beside = dict(textcoords='offset points', annotation_clip=False)
    under = dict(xycoords='axes fraction', xytext=(0, -19), ha='center', va='top', color=INK)
    axes.annotate('pre-trained', (0, 0), **under, **beside)
    axes.set_xlabel('forgetting task', color=INK)
    _style(axes, f'{prefix[:-1]} (%)', 'What was forgotten, what stayed')

    # Two lines of text; what stands around the axes takes about 1.4 inches.
    gap = top * 0.33 / (axes.figure.get_figheight() - 1.4)
    heights = apart([label[2] for label in labels], gap, 0.02 * top, 0.96 * top)
    for (text, colour, _), y in zip(labels, heights):
        style = dict(xytext=(9, 0), color=colour, fontsize=9, va='center', linespacing=1.05)
        axes.annotate(text, (len(tasks), y), **style, **beside)
    handles = [Line2D([], [], color=_SOFT, ls='--', lw=1.2), Line2D([], [], **_FALL)]
    texts = ['same retained classes, pre-trained', "this task's forgotten classes, pre-trained"]
    shown = 2 if len(tasks) > 1 else 1
    _legend_below(axes, handles[:shown], texts[:shown])


def _draw_map(axes: Axes, blocks: GroupMap, labels: list[str]) -> None:
    shown = np.ma.masked_where(blocks.zero | np.isnan(blocks.relative), blocks.relative)
    image = axes.imshow(shown, cmap=_NORMS, vmin=0, vmax=1, aspect='auto', interpolation='nearest')
    behind = dict(boxstyle='round,pad=0.12', facecolor=_UNTOUCHED['facecolor'], ec='none')
    for row, column in zip(*np.nonzero(blocks.zero)):
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, linewidth=0, gid='zero group', **_UNTOUCHED))
        axes.text(
            column, row, '0', ha='center', va='center', fontsize=8, color=INK, bbox=behind
        )  # fmt: skip
    rows, columns = blocks.relative.shape
    axes.set_yticks(range(rows), labels, fontsize=8)
    axes.set_xticks(range(columns), [str(task) for task in blocks.tasks])
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which='minor', color='white', linewidth=1.5)
    axes.tick_params(which='both', length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel('forgetting task', color=INK)
    axes.set_title('Blocks each task selected', loc='left', fontsize=11, color=INK)

    bar = axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03, aspect=30)
    bar.set_label("LoRA norm / task's largest", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    bar.outline.set_visible(False)
    untouched = f'0: left exactly untouched ({blocks.zero.sum()} of {blocks.zero.size})'
    _legend_below(axes, [Patch(**_UNTOUCHED)], [untouched])


def apart(values: list[float], gap: float, low: float, high: float) -> list[float]:
    """The values moved as little as needed to stand at least ``gap`` apart, in their order.

    Args:
        values: Wanted positions.
        gap: Smallest distance between two neighbours.
        low: Lowest position allowed.
        high: Highest position allowed.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [0.0] * len(values)
    for i in order:
        placed[i] = max(values[i], low)
        low = placed[i] + gap
    for i in reversed(order):
        placed[i] = min(placed[i], high)
        high = placed[i] - gap
    return placed


def classes_figure(record: dict, order: Sequence[str]) -> Figure:
    """Every class before forgetting (wide and pale) and after each task, one row per task.

    Of more classes than names have room one in two, three, ... is named.

    Args:
        record: The content of ``forgetting.json``.
        order: The classes from left to right.
    """
    tasks, unit = tasks_of(record), f'{metric_prefix(record)[:-1]} (%)'
    asked = {name for task in tasks for name in task['forget']}
    before = [number(values_before(record, gone=name in asked).get(name)) for name in order]
    figure = _figure(9.6, 1.35 * len(tasks) + 0.9 + 0.055 * max(map(len, order)))
    rows = figure.subplots(len(tasks), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, task in zip(rows, tasks):
        _bars(axes, [v or 0.0 for v in before], 0.86, _PALE)
        group_of = {name: key for key, names in class_groups(task).items() for name in names}
        colours = [_SERIES[group_of[n]][1] if n in group_of else _PALE for n in order]
        now = [number(task['per_class'].get(name)) or 0.0 for name in order]
        _bars(axes, now, 0.5, colours)
        _style(axes, unit, f'after task {task["task"]}', 9)
    rows[0].autoscale(axis='y')  # by what all of the rows hold: the first one alone has set it
    rows[0].set_ylim(bottom=0)
    many = sum(map(len, order)) > 110
    size = 9 if len(order) < 40 else 6.5
    every = math.ceil(len(order) / _NAMES)
    rows[-1].set_xticks(range(0, len(order), every), map(as_text, order[::every]))
    rows[-1].tick_params(axis='x', rotation=90 if many else 0, labelsize=size)
    if every > 1:
        rows[-1].set_xlabel(f'one class in {every} is named', fontsize=9, color=INK)
    rows[-1].set_xlim(-0.6, len(order) - 0.4)
    used = {key for task in tasks for key, names in class_groups(task).items() if names}
    handles = [Patch(color=_PALE), *(Patch(color=_SERIES[k][1]) for k in _SERIES if k in used)]
    texts = ['pre-trained', *(_SERIES[k][0] for k in _SERIES if k in used)]
    _legend_at_foot(figure, handles, texts)
    return figure


def _bars(axes: Axes, heights: Sequence[float], width: float, colours: Any) -> None:
    """Bars at 0, 1, 2, ..., all of them one artist: thousands of their own take minutes."""
    left, right = np.arange(len(heights)) - width / 2, np.arange(len(heights)) + width / 2
    floor, top = np.zeros(len(heights)), np.asarray(heights)
    corners = [[left, floor], [left, top], [right, top], [right, floor]]
    axes.add_collection(PolyCollection(np.transpose(corners, (2, 0, 1)), facecolors=colours))
    axes.autoscale_view()


def probe_figure(audit: AuditRows, measures: Sequence[str]) -> Figure:
    """What a probe names, layer by layer: one bar per model, lines from lowest to highest seed."""
    figure = _figure(9.6, 3.4)
    axes = figure.subplots()
    wide = 0.8 / len(audit.models)
    for i, model in enumerate(audit.models):
        for place, measure in enumerate(measures):
            if value := audit.value(measure, model):
                name = as_text(MODEL_NAMES.get(model, model))
                axes.bar(
                    place + (i - (len(audit.models) - 1) / 2) * wide,
                    value.mean,
                    wide * 0.95,
                    color=_look(audit, model)[0],
                    label=name if name not in axes.get_legend_handles_labels()[1] else None,
                    yerr=_errors([value]) if value.seeds > 1 else None,
                    error_kw=dict(ecolor=INK, elinewidth=1),
                )
    axes.set_xticks(range(len(measures)), [as_text(m.partition('/')[2] or m) for m in measures])
    _style(axes, 'objects named correctly (%)')
    _legend_at_foot(figure, *axes.get_legend_handles_labels())
    return figure


def relearning_figure(audit: AuditRows) -> Figure:
    """How fast the classes come back: one panel per number of images, one curve per model."""
    curves = audit.curves()
    rows = (len(curves) + 1) // 2
    figure = _figure(9.6, 2.4 * rows + 0.5)
    panels = figure.subplots(rows, min(2, len(curves)), sharey=True, squeeze=False).flat
    named: dict[str, Artist] = {}
    for axes, images in zip_longest(panels, curves):
        if images is None:
            axes.set_visible(False)
            continue
        for model, curve in curves[images].items():
            steps, values = zip(*curve)
            colour, marker, dash = _look(audit, model)
            named[as_text(MODEL_NAMES.get(model, model))] = axes.errorbar(
                steps,
                [value.mean for value in values],
                _errors(values),
                color=colour,
                marker=marker,
                ls=dash,
                capsize=2,
                elinewidth=1,
            )
        axes.set_xlabel('training steps', color=INK)
        _style(axes, 'forgotten classes (%)', f'{images} image{"s" * (images > 1)}', 9)
    _legend_at_foot(figure, list(named.values()), list(named))
    return figure


def outcomes_figure(audit: AuditRows) -> Figure:
    """One bar per model, from what is still found to what is background."""
    of_models = {model: shares for model in audit.models if (shares := audit.outcomes(model))}
    figure = _figure(9.6, 1.1 + 0.36 * len(of_models))
    axes = figure.subplots()
    names = [as_text(MODEL_NAMES.get(model, model)) for model in of_models]
    left = np.zeros(len(of_models))
    for what, colour in _OUTCOMES.items():
        shares = np.array([shares[what] for shares in of_models.values()])
        axes.barh(names, shares, 0.65, left, color=colour, edgecolor='white', label=what)
        left += shares
    axes.invert_yaxis()
    axes.set(xlim=(0, 100))
    axes.set_xlabel('% of the forgotten objects', color=INK)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(colors=INK, length=0)
    _legend_at_foot(figure, *axes.get_legend_handles_labels())
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout='constrained', facecolor='white')


def _look(audit: AuditRows, model: str) -> tuple[str, str, str]:
    """Colour, marker and dash of a model."""
    others = [name for name in audit.models if name not in _MODELS]
    return _MODELS.get(model) or (
        _OTHER_MODELS[others.index(model) % len(_OTHER_MODELS)],
        'X',
        '-.',
    )


def _errors(values: Sequence[Spread]) -> np.ndarray:
    return np.array([[v.mean - v.low for v in values], [v.high - v.mean for v in values]])


def _style(axes: Axes, y_label: str, title: str = '', size: int = 11) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel(y_label, color=INK, fontsize=min(size, 10))
    axes.set_title(title, loc='left', fontsize=size, color=INK)
    axes.grid(axis='y', color='#e4e4e4', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color('#aaaaaa')
    axes.tick_params(colors=INK, length=3)


def _legend_at_foot(figure: Figure, handles: Sequence[Artist], texts: Sequence[str]) -> None:
    style = dict(fontsize=9, frameon=False, labelcolor=INK)
    figure.legend(handles, texts, loc='outside lower center', ncols=len(texts) or 1, **style)


def _legend_below(axes: Axes, handles: Sequence[Artist], texts: Sequence[str]) -> None:
    # In inches below the axis, not in parts of its height: the same in low and high figures.
    below = axes.transAxes + ScaledTranslation(0, -0.55, axes.figure.dpi_scale_trans)
    where = dict(loc='upper left', bbox_to_anchor=(0, 0), bbox_transform=below, borderaxespad=0)
    axes.legend(handles, texts, fontsize=8, frameon=False, labelcolor=INK, **where)
