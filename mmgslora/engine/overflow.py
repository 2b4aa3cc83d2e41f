"""Steps of an optimizer that are none, for a gradient overflowed in half precision."""

from __future__ import annotations

from collections.abc import Callable

import torch


def if_taken(act: Callable[[], None]) -> Callable[..., None]:
    """A hook before or after the steps of an optimizer that leaves out those that move nothing.

    GradScaler does not call an optimizer for such a step, unless it is a fused one, which is called
    and told so.
    """

    def hook(optimizer: torch.optim.Optimizer, *_) -> None:
        if not getattr(optimizer, 'found_inf', None):
            act()

    return hook
