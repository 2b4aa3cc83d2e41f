"""What an audit found, one plain sentence per kind of measure."""

from __future__ import annotations

from mmgslora.audit.rows import (
    MODEL_NAMES,
    ORACLE,
    ORIGINAL,
    UNLEARNED,
    AuditRows,
    curve_point,
)
from mmgslora.audit.verdict import RELEARNING_POINT
from mmgslora.report.format import points, value_text

_SHARES_OF_ONE = ('membership', 'divergence', 'other')
_NOT_MEASURED = 'The model after forgetting was not measured.'


def text_of(kind: str, value: float | None) -> str:
    """A value of a kind of measures: percent and points with one decimal, others with more."""
    return value_text(value) if kind in _SHARES_OF_ONE else points(value)


def sentence(audit: AuditRows, kind: str) -> str:
    """What the measures of a kind found, beside the original and the oracle.

    Args:
        audit: The audit.
        kind: One of its :meth:`AuditRows.kinds`.
    """
    measures = audit.of(kind)
    if kind in ('probe', 'prototype'):
        return _probe(audit, kind, measures)
    if kind == 'relearning':
        return _relearning(audit, measures)
    if kind == 'new_head':
        return f'With new rows in the head, {_relearning(audit, measures)}'
    if kind == 'outcomes':
        return _outcomes(audit)
    if kind == 'damage':
        return _damage(audit)
    found = []
    for measure in measures:
        unlearned = audit.value(measure, UNLEARNED)
        others = [
            f'{what} {text_of(kind, value.mean)}'
            for model, what in ((ORIGINAL, 'before'), (ORACLE, 'oracle'))
            if (value := audit.value(measure, model))
        ]
        if unlearned and others and '/per_class/' not in measure:
            now = text_of(kind, unlearned.mean)
            found.append(f'{name_of(measure)} {now} ({", ".join(others)})')
    if not any(audit.value(measure, UNLEARNED) for measure in measures):
        return _NOT_MEASURED
    if not found:
        return 'Neither the original nor an oracle is there to compare these numbers with.'
    return f'After forgetting: {"; ".join(found[:3])}.'


def name_of(measure: str) -> str:
    """A measure without the word that names its kind."""
    return measure.partition('/')[2] or measure


def worst_first(audit: AuditRows) -> list[str]:
    """The measures of damage, from the class that lost most to the one that gained most."""
    lost = {measure: audit.value(measure, UNLEARNED) for measure in audit.of('damage')}
    return sorted(lost, key=lambda m: lost[m].mean if lost[m] else float('-inf'), reverse=True)


def _probe(audit: AuditRows, kind: str, measures: list[str]) -> str:
    last = measures[-1]
    unlearned, before = audit.value(last, UNLEARNED), audit.value(last, ORIGINAL)
    if unlearned is None:
        return _NOT_MEASURED
    reader = 'the probe' if kind == 'probe' else 'the nearest mean'
    text = f'From {name_of(last)}, {reader} names {points(unlearned.mean)} % of the forgotten '
    text += f'objects (before forgetting {points(before.mean)} %)' if before else 'objects'
    gap = audit.gap(last)
    if gap is None:
        return f'{text}; without an oracle it is not known how many would be too many.'
    text += f', from {audit.reference_name} {points(audit.reference(last).mean)} %: '
    text += f'{_lead(gap)} points' if gap > 0 else 'no'
    text += ' more than in a model that never saw them.'
    gaps = {m: gap for m in measures if (gap := audit.gap(m)) is not None}
    widest = max(gaps, key=gaps.get)
    if gaps[widest] > max(gap, 0):
        text += f' The largest lead is at {name_of(widest)}, {points(gaps[widest])} points.'
    return text


def _relearning(audit: AuditRows, measures: list[str]) -> str:
    images, step = RELEARNING_POINT
    measure = next((m for m in measures if curve_point(m) == RELEARNING_POINT), None)
    unlearned = audit.value(measure, UNLEARNED) if measure else None
    if unlearned is None:
        return f'{step} steps on {images} images were not measured.'
    text = f'{step} steps on {images} images bring the forgotten classes back to '
    text += f'{points(unlearned.mean)} %'
    gap = audit.gap(measure)
    if gap is None:
        return f'{text}; without an oracle it is not known how much of that is new learning.'
    text += f', {audit.reference_name} to {points(audit.reference(measure).mean)} %: '
    if gap > 0:
        text += f'{_lead(gap)} points of lead'
        if audit.is_close(measure):
            return f'{text}, less than the draws of one of the two lie apart.'
        return f'{text} are knowledge that was left behind.'
    return f'{text}no lead over a model that never saw the classes.'


def _lead(gap: float) -> str:
    # One that fails must not read as none.
    return points(gap) if round(gap, 1) else f'{gap:.1g}'


def _outcomes(audit: AuditRows) -> str:
    said = []
    for model in (UNLEARNED, ORACLE):
        shares = audit.outcomes(model)
        if not shares:
            continue
        parts = [f'{points(share)} % {what}' for what, share in shares.items()]
        called = {
            name_of(measure).removeprefix('called '): value.mean
            for measure in audit.of('outcomes')
            if '/called ' in measure and (value := audit.value(measure, model))
        }
        if any(called.values()):
            most = max(called, key=called.get)
            parts.append(f'most often called {most}, {points(called[most])} %')
        said.append(f'{MODEL_NAMES[model]}: {", ".join(parts)}')
    text = '; '.join(said)
    return f'{text[:1].upper()}{text[1:]}.' if said else _NOT_MEASURED


def _damage(audit: AuditRows) -> str:
    worst = worst_first(audit)[0]
    unlearned = audit.value(worst, UNLEARNED)
    if unlearned is None:
        return _NOT_MEASURED
    name = name_of(worst)
    if round(unlearned.mean, 1) < 0:
        gained = points(-unlearned.mean)
        return f'No class that stays has lost points; {name} has gained least: {gained} points.'
    text = f'{name} has lost most: {points(unlearned.mean)} points'
    if near := audit.nearest.get(name):
        gone = ', which was forgotten' if near in audit.forgotten else ''
        text += f'. The class it is taken for most is {near}{gone}'
    return f'{text}.'
