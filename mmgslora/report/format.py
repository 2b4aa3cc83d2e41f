"""How the report writes numbers and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

DASH = '–'
"""Stands where nothing was measured."""


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
    if value is None:
        return DASH
    return points(value) if abs(value) >= 1 or value == 0 else f'{value:.3f}'.replace('-', '−')


def gap_text(value: float | None, text: Callable[[float | None], str]) -> str:
    """A difference as ``text`` writes it, with a plus where it is above what ``text`` calls 0."""
    written = text(value)
    return f'+{written}' if value and value > 0 and written != text(0.0) else written


def for_matplotlib(text: str) -> str:
    """Text that matplotlib shows as it is; a bare ``$`` would begin a formula."""
    return text.replace('$', r'\$')


def short(value: Any) -> str:
    """A setting in one line."""
    if isinstance(value, Mapping):
        kind = value.get('type')
        rest = ', '.join(f'{k}={short(v)}' for k, v in value.items() if k != 'type')
        return f'{kind}({rest})' if kind else rest
    if isinstance(value, (list, tuple)):
        return ', '.join(map(short, value))
    return str(value)


def pairs(value: Any) -> list[tuple[str, str]]:
    """Whatever an audit wrote, as lines of name and text."""
    if value in (None, {}, []):
        return []
    if isinstance(value, Mapping):
        return [(str(name).replace('_', ' '), short(item)) for name, item in value.items()]
    return [('', short(value))]
