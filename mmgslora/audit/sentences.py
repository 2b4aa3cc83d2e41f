"""What an audit found, one plain sentence per measure."""

from __future__ import annotations

from collections.abc import Iterator

from mmgslora.audit.measures import ORACLE, ORIGINAL, UNLEARNED
from mmgslora.audit.record import AuditRecord
from mmgslora.audit.verdict import NEW_HEAD_MEASURE, RELEARNING_MEASURE


def sentences(record: AuditRecord) -> list[str]:
    """One sentence per finished measure, then the verdict and what cannot be concluded."""
    found = [*_output(record), *_outcomes(record), *_localisation(record), *_probe(record)]
    found += [*_membership(record), *_divergence(record), *_relearning(record)]
    verdict = record.verdict()
    if verdict is not None:
        found.append(f'Verdict: {verdict.verdict}. {verdict.reason}')
    return found + [f'Cannot be concluded: {text}' for text in record.cannot_conclude()]


def _beside(record: AuditRecord, measure: str, form: str) -> str | None:
    """'x (original y, oracle z)'; None where the unlearned model was not measured."""
    unlearned = record.mean(measure, UNLEARNED)
    if unlearned is None:
        return None
    others = [
        f'{model} {value:{form}}'
        for model in (ORIGINAL, ORACLE)
        if (value := record.mean(measure, model)) is not None
    ]
    return f'{unlearned:{form}}' + (f' ({", ".join(others)})' if others else '')


def _names(record: AuditRecord, first: str) -> list[str]:
    """Measures that start so, in their order, each once."""
    return list(dict.fromkeys(r['measure'] for r in record.rows if r['measure'].startswith(first)))


def _output(record: AuditRecord) -> Iterator[str]:
    values = {name: _beside(record, name, '.1f') for name in _names(record, 'output/A')}
    parts = [f'{name.partition("/")[2]} is {text}' for name, text in values.items() if text]
    if parts:
        yield f'Output, in %: {"; ".join(parts)}.'
    damage = {name: record.mean(name, UNLEARNED) for name in _names(record, 'damage/')}
    damage = {name: value for name, value in damage.items() if value is not None}
    if damage:
        worst = max(damage, key=damage.get)
        name = worst.partition('/')[2]
        near = record.nearest.get(name)
        yield (
            f'Hardest hit of the classes that stay: {name}, {damage[worst]:.1f} points lost'
            + (f'; the class the original confuses it with most is {near}.' if near else '.')
        )


def _outcomes(record: AuditRecord) -> Iterator[str]:
    shares = {
        name.partition('/')[2]: value
        for name in _names(record, 'outcomes/')
        if (value := record.mean(name, UNLEARNED)) is not None
    }
    if shares:
        order = sorted(shares, key=lambda name: -shares[name])
        text = ', '.join(f'{name} {shares[name]:.1f} %' for name in order)
        yield f'Objects of the forgotten classes now: {text}.'


def _localisation(record: AuditRecord) -> Iterator[str]:
    text = _beside(record, 'localisation/forget', '.1f')
    if text:
        yield f'The best box on a forgotten object overlaps it by {text} %, mean IoU.'


def _probe(record: AuditRecord) -> Iterator[str]:
    for kind, what in (('probe', 'A linear probe'), ('prototype', 'The nearest class mean')):
        names = _names(record, f'{kind}/')
        text = names and _beside(record, names[-1], '.1f')
        if text:
            layer = names[-1].partition('/')[2]
            yield f'{what} on {layer} names {text} % of the forgotten objects.'


def _membership(record: AuditRecord) -> Iterator[str]:
    texts = {name: _beside(record, name, '.3f') for name in _names(record, 'membership/')}
    parts = [f'{name.partition("/")[2]} {text}' for name, text in texts.items() if text]
    if parts:
        yield f'Membership attacks, AUC where 0.5 is chance: {"; ".join(parts)}.'


def _divergence(record: AuditRecord) -> Iterator[str]:
    zrf = _beside(record, 'divergence/ZRF', '.3f')
    if zrf:
        yield f'ZRF, near 1 where the output says no more than an untrained model does: {zrf}.'
    sides = [_beside(record, f'divergence/oracle_{side}', '.4f') for side in ('forget', 'retain')]
    if all(sides):
        yield (
            'Jensen-Shannon divergence from the oracle, in bits: '
            f'{sides[0]} on forgotten and {sides[1]} on retained objects.'
        )


def _relearning(record: AuditRecord) -> Iterator[str]:
    text = _beside(record, RELEARNING_MEASURE, '.1f')
    if text:
        yield f'Relearning on 16 images brings the forgotten classes to {text} % in 20 steps.'
    text = _beside(record, NEW_HEAD_MEASURE, '.1f')
    if text:
        yield f'With new rows in the head of every model: {text} %.'
    for name in _names(record, 'relearning/'):
        lead = name.endswith('/lead') and record.mean(name, UNLEARNED)
        if name.endswith('/lead') and lead is not None:
            k = name.split('/')[1][1:]
            yield f'With k = {k} it is {lead:+.1f} points from the oracle, mean over the steps.'
