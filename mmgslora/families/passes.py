"""Passes through a model of which some parts are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    """What a module was asked, by position, and what it gave."""

    args: tuple
    output: Any


class _Enough(Exception):
    """The last part that was asked for has given its output."""


@contextmanager
def recorded(parts: Mapping[str, nn.Module], until: str) -> Iterator[dict[str, Call]]:
    """Within, collect what the parts are asked and give; what comes after one of them is not run.

    Args:
        parts: Modules by the name that their last call gets.
        until: The name after whose output the with statement ends, if a part has it.
    """
    seen: dict[str, Call] = {}

    def record(name: str, *call: Any) -> None:
        seen[name] = Call(*call)
        if name == until:
            raise _Enough

    handles = [
        part.register_forward_hook(lambda m, *call, name=name: record(name, *call))
        for name, part in parts.items()
    ]
    try:
        yield seen
    except _Enough:
        return  # with what was seen so far, to after the with statement
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def standing_in(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Within, each of these modules has another forward pass."""
    for part, forward in forwards.items():
        part.forward = forward
    try:
        yield
    finally:
        for part in forwards:
            del part.forward


def gives(output: Any) -> Callable:
    """A forward pass that gives this, whatever it is asked."""
    return lambda *args, **kwargs: output
