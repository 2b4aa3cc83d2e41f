"""How the reports write numbers and settings, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

DASH = '–'
"""Stands where nothing was measured."""


def terminal() -> Console:
    """The terminal, at least 100 columns wide; a class may be called ``[left]`` or ``:star:``."""
    return Console(width=max(Console().width, 100), markup=False, emoji=False)


def points(value: float | None) -> str:
    """A value in percent with one decimal, a dash for None."""
    if value is None:
        return DASH
    # Rounded first: no value is minus zero.
    return f'{round(value, 1) + 0.0:.1f}'.replace('-', '−')


def percent(share: float | None) -> str:
    """A share of 1 in whole percent, a dash for None."""
    return DASH if share is None else f'{100 * share:.0f} %'


def value_text(value: float | None) -> str:
    """A number of unknown unit: one decimal, or three where it would be lost below 1."""
    if value is None or abs(value) >= 1 or value == 0:
        return points(value)
    return f'{value:.3f}'.replace('-', '−')


def short(value: Any) -> str:
    """A setting in one line, what lies within another in brackets."""
    if isinstance(value, Mapping):
        kind = value.get('type')
        rest = ', '.join(f'{k}={_within(v)}' for k, v in value.items() if k != 'type')
        return f'{kind}({rest})' if kind else rest
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_within, value))
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def _within(value: Any) -> str:
    text = short(value)
    if isinstance(value, (list, tuple)):
        return f'[{text}]'
    return f'({text})' if isinstance(value, Mapping) and 'type' not in value else text
