"""What an audit prints: a table, and the sentences below it."""

from __future__ import annotations

from rich.table import Table

from mmgslora.audit.record import AuditRecord
from mmgslora.audit.rows import HEAD_ONLY, ORIGINAL, UNLEARNED, UNSEEN, Spread, is_oracle
from mmgslora.audit.sentences import sentence, text_of


def audit_table(record: AuditRecord) -> Table:
    """Means over the seeds with half the range, one row per measure, per-class values left out."""
    rows = record.rows
    table = Table(title=f'Audit of task {rows.task}: {", ".join(rows.forgotten)}')
    table.add_column('measure')
    oracles = [model for model in rows.files if is_oracle(model)]
    models = [m for m in (ORIGINAL, UNLEARNED, HEAD_ONLY, *oracles, UNSEEN) if m in rows.files]
    for model in models:
        table.add_column(model, justify='right')
    for kind, measures in rows.kinds().items():
        for measure in measures:
            if '/per_class/' not in measure:
                values = (rows.value(measure, model) for model in models)
                table.add_row(measure, *(_cell(kind, value) for value in values))
    return table


def audit_lines(record: AuditRecord) -> list[str]:
    """What every kind of measure found, what cannot be concluded from it, and the verdict."""
    rows, verdict = record.rows, record.verdict()
    lines = [f'{k.capitalize().replace("_", " ")}: {sentence(rows, k)}' for k in rows.kinds()]
    lines += [f'Cannot be concluded: {line}' for line in record.cannot_conclude()]
    return lines + ([f'Verdict: {verdict.verdict}. {verdict.reason}'] if verdict else [])


def _cell(kind: str, value: Spread | None) -> str:
    if value is None:
        return ''
    half = f' ± {text_of(kind, (value.high - value.low) / 2)}' if value.seeds > 1 else ''
    return text_of(kind, value.mean) + half
