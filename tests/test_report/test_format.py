"""How settings are written in one line, and names on the terminal."""

import pytest
from rich.table import Table

from mmgslora.report.format import short, terminal


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (1 / 3, '0.333333'),
        (2e-2, '0.02'),
        ([['circle', 'square'], ['star']], '[circle, square], [star]'),
        (dict(tasks=[['circle'], ['star']], missing=[]), 'tasks=[[circle], [star]], missing=[]'),
        (
            dict(type='GSLoRA', beta=[0.1, 1.0], sparsity=dict(mode='proximal', select=1 / 3)),
            'GSLoRA(beta=[0.1, 1], sparsity=(mode=proximal, select=0.333333))',
        ),
        (dict(tune=dict(type='LoRA', rank=16)), 'tune=LoRA(rank=16)'),
    ],
)
def test_settings_within_settings_stand_in_brackets(value, text):
    assert short(value) == text


def test_names_are_no_markup(capsys):
    names = 'left [left], closing [/left], :star:'
    table = Table()
    table.add_column('class')
    table.add_row(names)
    console = terminal()
    console.print(names)
    console.print(table)
    assert capsys.readouterr().out.count(names) == 2
