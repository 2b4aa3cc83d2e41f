"""What a training pipeline made of the images of a task, drawn once and kept."""

# ruff: noqa: NPY002  pipelines draw from the global generators

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info


class MadeItems:
    """Items of a data set whose pipeline draws once for a task (ours).

    What is not kept for want of room is made again, and drawn the same.

    Args:
        max_bytes: What the tensors of all items together may take. The first to come stay: in a
            task every item is asked for as often as the others.
    """

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.clear(0, 0)

    def clear(self, seed: int, task: int) -> None:
        """Begin a task: nothing is kept, and the draws are those of this seed and task."""
        self._seed = (seed, task)
        self._bytes = 0
        self._kept: dict[int, dict] = {}

    def emptied(self) -> MadeItems:
        """One that draws the same and keeps nothing yet."""
        other = MadeItems(self.max_bytes)
        other.clear(*self._seed)
        return other

    def get(self, index: int, make: Callable[[int], dict]) -> dict:
        """One item: ``inputs``, a tensor, and ``data_samples``, which the caller may write to.

        Args:
            index: Its number.
            make: Makes it, with draws of Python, NumPy and PyTorch.
        """
        if index in self._kept:
            return _handed_out(self._kept[index])
        with _drawing([*self._seed, index]):
            item = make(index)
        size = item['inputs'].nbytes
        if get_worker_info() is None and self._bytes + size <= self.max_bytes:
            self._bytes += size
            self._kept[index] = item
            return _handed_out(item)
        return item


def _handed_out(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, 'data_samples': item['data_samples'].new()}


@contextmanager
def _drawing(seed: list[int]) -> Iterator[None]:
    """Within, what a pipeline draws from is seeded; afterwards it is as it was."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)  # torch.manual_seed would seed the GPU as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
