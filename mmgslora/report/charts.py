"""The report's interactive charts, as Plotly figures."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mmgslora.report.audit_rows import MODEL_NAMES, AuditRows
from mmgslora.report.record import (
    mean_before,
    metric,
    metric_prefix,
    number,
    tasks_of,
    values_before,
)

# From the Okabe-Ito palette, as in forgetting.png; marker and dash differ as well.
_SERIES = {
    'r': ('retained', '#0072B2', 'circle', 'solid'),
    'm': ('must stay, no training data', '#009E73', 'diamond', 'solid'),
    'f': ('forgotten in this task', '#D55E00', 'square', 'solid'),
    'o': ('forgotten earlier', '#8A4F7D', 'triangle-up', 'dash'),
}
_PALE = '#cfcfc8'
_INK = '#333333'
_MODEL_STYLES = {
    'original': ('#8c8c84', 'circle', 'dot'),
    'unlearned': ('#D55E00', 'square', 'solid'),
    'oracle': ('#0072B2', 'diamond', 'dash'),
}
_BASELINE_COLOURS = ('#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_SHARES = {
    'found': '#D55E00',
    'low score': '#E69F00',
    'called another': '#56B4E9',
    'background': _PALE,
}
# Above this many classes names stand upright, and the task is chosen from a list.
_MANY = 16


def plain(text: str) -> str:
    """Text for Plotly, which would read some of HTML's tags in it."""
    return html.escape(str(text), quote=False)


def metrics_chart(record: dict) -> go.Figure:
    """AP_r, AP_f, AP_o (and AP_m) after every task, beside the pre-trained values."""
    tasks, prefix = tasks_of(record), metric_prefix(record)
    first = tasks[0]
    x = ['pre-trained', *(f'task {task["task"]}' for task in tasks)]
    before = {
        'r': mean_before(record, first['retain']),
        'm': mean_before(record, first.get('missing', [])),
        'f': mean_before(record, first['forget'], gone=True),
        'o': None,
    }
    figure = go.Figure()
    figure.add_scatter(
        x=x[1:],
        y=[mean_before(record, task['forget'], gone=True) for task in tasks],
        name="this task's classes, pre-trained",
        mode='markers',
        marker=dict(symbol='square-open', color=_SERIES['f'][1], size=9),
    )
    figure.add_scatter(
        x=x[1:],
        y=[mean_before(record, task['retain']) for task in tasks],
        name='retained classes, pre-trained',
        mode='lines+markers',
        line=dict(color='#8c8c84', dash='dot', width=1.5),
        marker=dict(symbol='circle-open', size=7),
    )
    for key, (meaning, colour, symbol, dash) in _SERIES.items():
        values = [metric(task, f'{prefix}{key}') for task in tasks]
        if any(value is not None for value in values):
            figure.add_scatter(
                x=x,
                y=[before[key], *values],
                name=f'{prefix}{key}: {meaning}',
                mode='lines+markers',
                line=dict(color=colour, dash=dash, width=2),
                marker=dict(symbol=symbol, size=9),
                cliponaxis=False,
            )
    figure.update_traces(hovertemplate='%{x}: %{y:.1f} %<extra>%{fullData.name}</extra>')
    figure = _styled(figure, f'{prefix[:-1]} (%)', height=380)
    # The first trace begins at task 1, and Plotly would put what comes later behind it.
    return figure.update_xaxes(type='category', categoryorder='array', categoryarray=x)


def classes_chart(record: dict, order: Sequence[str]) -> go.Figure:
    """Every class before forgetting and after a task; buttons choose the task.

    Args:
        record: The content of ``forgetting.json``.
        order: The classes from left to right.
    """
    tasks, prefix = tasks_of(record), metric_prefix(record)
    asked = {name for task in tasks for name in task['forget']}
    before = {name: values_before(record, gone=name in asked).get(name) for name in order}
    figure = go.Figure()
    figure.add_bar(
        x=[plain(name) for name in order],
        y=[number(before.get(name)) for name in order],
        name='pre-trained',
        marker_color=_PALE,
        width=0.86,
    )
    shown_by: list[int] = []
    for task in tasks:
        sides = {
            'r': task['retain'],
            'm': task.get('missing', []),
            'f': task['forget'],
            'o': task['old'],
        }
        for key, (meaning, colour, _, _) in _SERIES.items():
            names = [name for name in order if name in sides[key]]
            if names:
                figure.add_bar(
                    x=[plain(name) for name in names],
                    y=[number(task['per_class'].get(name)) for name in names],
                    name=meaning,
                    marker_color=colour,
                    width=0.5,
                    visible=task is tasks[-1],
                )
                shown_by.append(task['task'])
    buttons = [
        dict(
            label=f'after task {task["task"]}',
            method='restyle',
            args=['visible', [True, *(owner == task['task'] for owner in shown_by)]],
        )
        for task in tasks
    ]
    many = len(order) > _MANY
    figure.update_traces(hovertemplate='%{x}: %{y:.1f} %<extra>%{fullData.name}</extra>')
    figure.update_layout(
        barmode='overlay',
        bargap=0.1,
        updatemenus=[
            dict(
                type='buttons' if len(tasks) <= 5 else 'dropdown',
                direction='right' if len(tasks) <= 5 else 'down',
                buttons=buttons,
                active=len(tasks) - 1,
                x=0,
                xanchor='left',
                y=1.02,
                yanchor='bottom',
                showactive=True,
                bgcolor='#ffffff',
                bordercolor='#c8c8c0',
                font=dict(size=12),
                pad=dict(t=0, b=0),
            )
        ],
    )
    figure = _styled(figure, f'{prefix[:-1]} (%)', height=470 if many else 400)
    figure.update_xaxes(
        type='category',
        categoryorder='array',
        categoryarray=[plain(name) for name in order],
        tickangle=-90 if many else None,
        tickmode='linear',
        tickfont_size=8 if len(order) > 40 else 11,
    )
    return figure


def probe_chart(audit: AuditRows, measures: Sequence[str]) -> go.Figure:
    """What a probe names, layer by layer: one bar per model, lines from lowest to highest seed."""
    figure = go.Figure()
    for model in audit.models:
        values = [audit.value(measure, model) for measure in measures]
        if any(values):
            spread = any(value and value.seeds > 1 for value in values)
            figure.add_bar(
                x=[plain(measure.partition('/')[2] or measure) for measure in measures],
                y=[value and value.mean for value in values],
                name=plain(MODEL_NAMES.get(model, model)),
                marker_color=_style(audit, model)[0],
                error_y=dict(
                    type='data',
                    symmetric=False,
                    array=[value.high - value.mean if value else 0 for value in values],
                    arrayminus=[value.mean - value.low if value else 0 for value in values],
                    thickness=1.2,
                    color=_INK,
                )
                if spread
                else None,
                hovertemplate='%{x}: %{y:.1f} %<extra>%{fullData.name}</extra>',
            )
    figure.update_layout(barmode='group', bargap=0.25)
    figure = _styled(figure, 'objects named correctly (%)', height=360)
    return figure.update_xaxes(type='category')


def relearning_chart(audit: AuditRows, prefix: str) -> go.Figure:
    """How fast the classes come back: one panel per number of images, one curve per model."""
    curves = audit.curves()
    rows = (len(curves) + 1) // 2
    figure = make_subplots(
        rows=rows,
        cols=min(2, len(curves)),
        shared_yaxes=True,
        vertical_spacing=0.28 / rows,
        horizontal_spacing=0.06,
        subplot_titles=[f'{k} image{"s" * (k > 1)}' for k in curves],
    )
    named: set[str] = set()
    for panel, of_models in enumerate(curves.values()):
        place = dict(row=panel // 2 + 1, col=panel % 2 + 1)
        for model, curve in of_models.items():
            colour, symbol, dash = _style(audit, model)
            values = [value for _, value in curve]
            figure.add_scatter(
                x=[step for step, _ in curve],
                y=[value.mean for value in values],
                error_y=dict(
                    type='data',
                    symmetric=False,
                    array=[value.high - value.mean for value in values],
                    arrayminus=[value.mean - value.low for value in values],
                    thickness=1,
                    width=3,
                ),
                name=plain(MODEL_NAMES.get(model, model)),
                legendgroup=model,
                showlegend=model not in named,
                mode='lines+markers',
                line=dict(color=colour, dash=dash, width=2),
                marker=dict(symbol=symbol, size=7),
                hovertemplate='step %{x}: %{y:.1f} %<extra>%{fullData.name}</extra>',
                **place,
            )
            named.add(model)
        figure.update_xaxes(title_text='training steps', title_standoff=4, **place)
    figure = _styled(figure, f'{prefix}gone (%)', height=120 + 240 * rows)
    figure.update_yaxes(title_text=None, col=2)
    return figure.update_xaxes(rangemode='tozero')


def outcomes_shares(audit: AuditRows, model: str) -> dict[str, float]:
    """What became of a model's forgotten objects, in percent; empty if it was not measured."""
    shares = dict.fromkeys(_SHARES, 0.0)
    measured = False
    for measure in audit.of('outcomes'):
        name = measure.partition('/')[2].replace('_', ' ')
        what = 'called another' if is_called(measure) else name
        value = audit.value(measure, model)
        if value and what in shares:
            shares[what] += value.mean
            measured = True
    return shares if measured else {}


def is_called(measure: str) -> bool:
    """Whether a measure of outcomes counts objects that have another class's name now."""
    return measure.startswith('outcomes/called ')


def outcomes_chart(audit: AuditRows) -> go.Figure:
    """One bar per model, from what is still found to what is background."""
    of_models = {model: outcomes_shares(audit, model) for model in audit.models}
    # Plotly's first bar is the lowest.
    of_models = {model: shares for model, shares in reversed(of_models.items()) if shares}
    figure = go.Figure()
    for what, colour in _SHARES.items():
        figure.add_bar(
            y=[plain(MODEL_NAMES.get(model, model)) for model in of_models],
            x=[shares[what] for shares in of_models.values()],
            name=what,
            orientation='h',
            marker=dict(color=colour, line=dict(color='#ffffff', width=1)),
            hovertemplate='%{x:.1f} %<extra>%{fullData.name}</extra>',
        )
    figure = _styled(figure, '', height=130 + 36 * len(of_models))
    figure.update_layout(barmode='stack', bargap=0.35)
    figure.update_yaxes(title_text=None, type='category', automargin=True)
    return figure.update_xaxes(title_text='% of the forgotten objects', range=[0, 100])


def _style(audit: AuditRows, model: str) -> tuple[str, str, str]:
    if model in _MODEL_STYLES:
        return _MODEL_STYLES[model]
    others = [name for name in audit.models if name not in _MODEL_STYLES]
    return _BASELINE_COLOURS[others.index(model) % len(_BASELINE_COLOURS)], 'cross', 'dashdot'


def _styled(figure: go.Figure, y_title: str, height: int) -> go.Figure:
    figure.update_layout(
        template='none',
        height=height,
        autosize=True,
        margin=dict(l=56, r=12, t=36, b=36),
        font=dict(family='system-ui, sans-serif', size=12, color=_INK),
        legend=dict(orientation='h', yref='container', y=0, yanchor='bottom', x=0),
        hoverlabel=dict(font_size=12),
        paper_bgcolor='#ffffff',
        plot_bgcolor='#ffffff',
    )
    figure.update_yaxes(
        title_text=y_title, rangemode='tozero', gridcolor='#e4e4e0', zerolinecolor='#aaaaaa'
    )
    return figure.update_xaxes(showgrid=False, zeroline=False, automargin=True)
