"""The report's section on the audit: each attack with its chart, numbers, sentence and caveat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plotly.graph_objects import Figure

from mmgslora.audit.verdict import RELEARNING_POINT, worst
from mmgslora.report import charts
from mmgslora.report.audit_rows import MODEL_NAMES, AuditRows, curve_point
from mmgslora.report.certificate import audit_reason, judge_run
from mmgslora.report.format import gap_text, pairs, points, value_text
from mmgslora.report.run import FinishedRun

_MOST_DAMAGED = 12


@dataclass(frozen=True)
class _Kind:
    """What the report says about all measures whose first word is the same.

    Attributes:
        title: The heading.
        what: What is done.
        caveat: What it cannot say.
        percent: Whether its values are in percent or points: one decimal is enough then.
    """

    title: str
    what: str
    caveat: str = ''
    percent: bool = True


_KINDS = {
    'output': _Kind(
        'Output: what does it answer?',
        'The models compared are measured on the same held-out images, in %: the mean over all '
        'classes that must be gone by now (_gone; _f of section 2 is that of one task alone), over '
        'those that stay (_r) and those that stay without training data (_m).',
        'The weakest evidence: it says nothing about what is left inside.',
    ),
    'outcomes': _Kind(
        'Outcomes: what became of the objects?',
        'Each true object of the forgotten classes, in % of them: found under its own name, called '
        'something else, low score (its own name only at a very low score), or background.',
        'What has a low score comes back when somebody lowers the score threshold.',
    ),
    'localisation': _Kind(
        'Localisation: does it still outline the objects?',
        'Mean IoU, in %, of the best box on each true object, whatever the box is called; '
        'forgotten (forget) and retained objects (retain).',
        'Every detector outlines objects it never saw to some degree; only what is above the '
        'oracle was left behind.',
    ),
    'probe': _Kind(
        'Probes: can the classes still be read off inside?',
        'A simple classifier (logistic regression) is trained on what a layer computes, for '
        'objects of all classes, and then has to name held-out objects of the forgotten ones. '
        'Values: objects named correctly, in %.',
        'A probe that fails does not prove that a better one would. One that succeeds on a '
        'model that never saw the classes too only shows that they look different from the rest.',
    ),
    'prototype': _Kind(
        'Prototypes: does the mean of the examples find them?',
        'Each class is represented by the mean of its training objects in a layer; held-out '
        'objects of the forgotten classes get the name of the nearest mean. Values: objects named '
        'correctly, in %.',
        'Weaker than the probe above; it needs no training.',
    ),
    'relearning': _Kind(
        'Relearning: how fast do a few images bring them back?',
        'Copies of the models are trained on a few images (k) of the forgotten classes; what they '
        'recognise is measured on the way, in %. lead: mean over the steps above the oracle; '
        'steps_to_oracle: steps until it has what the oracle has at the end.',
        'Any model can learn a class from images. Only the lead over the oracle is knowledge '
        'that was left behind, for this learning rate and these images.',
    ),
    'new_head': _Kind(
        'New head: how fast do they come back into a new one?',
        'The same after the rows of the forgotten classes in the heads of all models were '
        'replaced by new, random ones, in %. A model that only lost its rows has no advantage.',
        'Only the lead over the oracle is knowledge that was left behind. The larger lead, of '
        'this attack and the one above, counts in the verdict.',
    ),
    'membership': _Kind(
        'Membership: does it still know its training images?',
        'From confidence, entropy or loss it is guessed whether an object was trained on. Values: '
        'AUC, how often that ranks a training object before a held-out one; 0.5 is chance, 1 '
        'always.',
        'These attacks are simple ones; stronger ones with shadow models exist.',
        percent=False,
    ),
    'divergence': _Kind(
        'Divergence: does it answer as the oracle would?',
        'oracle_forget and oracle_retain: Jensen-Shannon divergence from the answers of the '
        'oracle, from 0 (the same) to 1. ZRF: 1 minus the divergence from a model with random '
        'weights.',
        'Two models trained without the classes also differ, and answers alone say nothing about '
        'what is left inside.',
        percent=False,
    ),
    'damage': _Kind(
        'Damage: who paid for it?',
        'Points that each retained class has lost since before the forgetting; below 0 it has '
        'gained.',
        'The oracle differs from the original model in its whole training, not in the classes '
        'alone.',
    ),
}
_OTHER = _Kind('Other measures', 'Measures this report has no words for.', percent=False)


def audit_section(run: FinishedRun, prefix: str) -> dict[str, Any] | None:
    """What the template shows of the audit, None where there is none.

    Args:
        run: The finished run.
        prefix: What the metrics' names begin with.
    """
    audit = run.audit
    if audit is None:
        return None
    kinds: dict[str, list[str]] = {}
    for measure in audit.measures:
        word = measure.split('/')[0]
        kinds.setdefault(word if word in _KINDS else 'other', []).append(measure)
    seeds = [
        value.seeds
        for measure in audit.measures
        for model in audit.models
        if (value := audit.value(measure, model))
    ]
    return dict(
        sections=[
            _section(audit, kind, kinds[kind], prefix)
            for kind in (*_KINDS, 'other')
            if kind in kinds
        ],
        models=[MODEL_NAMES.get(model, model) for model in audit.models],
        seeds=max(seeds, default=0),
        has_oracle=audit.has_oracle,
        reason=audit_reason(run, run.tasks[-1]),
        task=audit.task,
        forgotten=audit.forgotten,
        verdict=_verdict(run),
        settings=pairs(audit.content.get('settings')),
    )


def _verdict(run: FinishedRun) -> list[tuple[str, str]]:
    """The worst verdict on the requests that the audit covers, judged now."""
    covered = [v for v, task in zip(judge_run(run), run.tasks) if not audit_reason(run, task)]
    if not covered:
        return []
    verdict = worst(covered)
    which = f' (task {verdict.task})' if len(covered) > 1 else ''
    return [('verdict', f'{verdict.verdict}{which}'), ('reason', verdict.reason)]


def _section(audit: AuditRows, kind: str, measures: list[str], prefix: str) -> dict[str, Any]:
    words = _KINDS.get(kind, _OTHER)
    said, shown, left_out = sentence(audit, kind, measures, prefix), measures, ''
    if kind == 'output':
        # Class by class it is in section 3, and what each lost under "Damage".
        shown = [measure for measure in measures if '/per_class/' not in measure]
    elif kind == 'damage':
        shown = _worst_first(audit, measures)[:_MOST_DAMAGED]
        if len(shown) < len(measures):
            left_out = f'The {len(shown)} of {len(measures)} retained classes that lost most.'
    return dict(
        kind=kind,
        title=words.title,
        what=words.what,
        caveat=words.caveat,
        figure=_figure(audit, kind, measures, prefix),
        sentence=said,
        left_out=left_out,
        rows=[_row(audit, measure, kind, words.percent) for measure in shown],
    )


def _row(audit: AuditRows, measure: str, kind: str, percent: bool) -> dict[str, Any]:
    """A measure with mean and, over several seeds, lowest and highest value of each model."""
    text = points if percent else value_text
    cells = []
    for model in audit.models:
        value = audit.value(measure, model)
        spread = f'({text(value.low)} to {text(value.high)})' if value and value.seeds > 1 else ''
        cells.append((text(value and value.mean), spread))
    name = _name(measure)
    near = audit.nearest.get(name) if kind == 'damage' else None
    gap = audit.gap(measure)
    return dict(
        name=f'{name} (nearest: {near})' if near else name,
        cells=cells,
        gap=gap_text(gap, text),
    )


def sentence(audit: AuditRows, kind: str, measures: list[str], prefix: str) -> str:
    """What an audit found, in one plain sentence.

    Args:
        audit: The audit.
        kind: The first word of the measures.
        measures: The measures of this kind.
        prefix: What the metrics' names begin with.
    """
    if kind in ('probe', 'prototype'):
        return _probe_sentence(audit, kind, measures)
    if kind == 'relearning':
        return _relearning_sentence(audit, measures, prefix)
    if kind == 'new_head':
        return f'With new rows in the head, {_relearning_sentence(audit, measures, prefix)}'
    if kind == 'outcomes':
        return _outcomes_sentence(audit)
    if kind == 'damage':
        return _damage_sentence(audit, measures)
    if kind == 'output':
        measures = [measure for measure in measures if '/per_class/' not in measure]
    text = points if kind in _KINDS and _KINDS[kind].percent else value_text
    found = []
    for measure in measures:
        unlearned = audit.value(measure, 'unlearned')
        others = [
            f'{what} {text(value.mean)}'
            for model, what in (('original', 'before'), ('oracle', 'oracle'))
            if (value := audit.value(measure, model))
        ]
        if unlearned and others:
            found.append(f'{_name(measure)} {text(unlearned.mean)} ({", ".join(others)})')
    if not found:
        return 'There is no other model to compare these numbers with.'
    return f'After forgetting: {"; ".join(found[:3])}.'


def _probe_sentence(audit: AuditRows, kind: str, measures: list[str]) -> str:
    last = measures[-1]
    unlearned, before = audit.value(last, 'unlearned'), audit.value(last, 'original')
    if unlearned is None:
        return 'The model after forgetting was not measured.'
    reader = 'the probe' if kind == 'probe' else 'the nearest mean'
    text = f'From {_name(last)}, {reader} names {points(unlearned.mean)} % of the forgotten objects'
    text += f' (before forgetting {points(before.mean)} %)' if before else ''
    gap = audit.gap(last)
    if gap is None:
        return f'{text}; without an oracle it is not known how many would be too many.'
    text += f', from the oracle {points(audit.value(last, "oracle").mean)} %: '
    text += f'{points(gap)} points' if gap > 0 else 'no'
    text += ' more than in a model that never saw them.'
    gaps = {m: gap for m in measures if (gap := audit.gap(m)) is not None}
    widest = max(gaps, key=gaps.get)
    if gaps[widest] > max(gap, 0):
        text += f' The largest lead is at {_name(widest)}, {points(gaps[widest])} points.'
    return text


def _relearning_sentence(audit: AuditRows, measures: list[str], prefix: str) -> str:
    images, step = RELEARNING_POINT
    measure = next((m for m in measures if curve_point(m) == RELEARNING_POINT), None)
    unlearned = audit.value(measure, 'unlearned') if measure else None
    if unlearned is None:
        return f'{step} steps on {images} images were not measured.'
    text = f'{step} steps on {images} images bring {prefix}gone back to {points(unlearned.mean)} %'
    gap = audit.gap(measure)
    if gap is None:
        return f'{text}; without an oracle it is not known how much of that is new learning.'
    text += f', the oracle to {points(audit.value(measure, "oracle").mean)} %: '
    if gap > 0:
        return f'{text}{points(gap)} points of lead are knowledge that was left behind.'
    return f'{text}no lead over a model that never saw the classes.'


def _outcomes_sentence(audit: AuditRows) -> str:
    said = []
    for model in ('unlearned', 'oracle'):
        shares = charts.outcomes_shares(audit, model)
        if not shares:
            continue
        called = {
            _name(measure).partition(' ')[2]: value.mean
            for measure in audit.of('outcomes')
            if charts.is_called(measure) and (value := audit.value(measure, model))
        }
        parts = [f'{points(share)} % {what}' for what, share in shares.items()]
        if called:
            most = max(called, key=called.get)
            parts.append(f'most often called {most}, {points(called[most])} %')
        said.append(f'{MODEL_NAMES[model]}: {", ".join(parts)}')
    if not said:
        return 'The model after forgetting was not measured.'
    text = '; '.join(said)
    return f'{text[:1].upper()}{text[1:]}.'


def _damage_sentence(audit: AuditRows, measures: list[str]) -> str:
    worst = _worst_first(audit, measures)[0]
    unlearned = audit.value(worst, 'unlearned')
    if unlearned is None:
        return 'The model after forgetting was not measured.'
    name = _name(worst)
    text = f'{name} has lost most: {points(unlearned.mean)} points'
    if near := audit.nearest.get(name):
        gone = ', which was forgotten' if near in audit.forgotten else ''
        text += f'. The class it is taken for most is {near}{gone}'
    return f'{text}.'


def _worst_first(audit: AuditRows, measures: list[str]) -> list[str]:
    def loss(measure: str) -> float:
        unlearned = audit.value(measure, 'unlearned')
        return unlearned.mean if unlearned else float('-inf')

    return sorted(measures, key=loss, reverse=True)


def _figure(audit: AuditRows, kind: str, measures: list[str], prefix: str) -> Figure | None:
    if kind in ('probe', 'prototype'):
        return charts.probe_chart(audit, measures)
    if kind == 'relearning' and audit.curves():
        return charts.relearning_chart(audit, prefix)
    if kind == 'outcomes' and any(charts.outcomes_shares(audit, m) for m in audit.models):
        return charts.outcomes_chart(audit)
    return None


def _name(measure: str) -> str:
    """A measure without the word that names its audit."""
    return measure.partition('/')[2] or measure
