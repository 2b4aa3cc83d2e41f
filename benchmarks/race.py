"""A whole request, step by step, beside others that take a step each on the same batches."""

from __future__ import annotations

import copy
import cProfile
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from mmengine.hooks import Hook
from stopwatch import (
    Parts,
    TensorMemory,
    all_tensors,
    now,
    seconds_in,
    tensors_of,
    wrap_step,
)

OURS = 'ours'
BETWEEN = 'ours between steps'
_KINDS = ('race', 'parts', 'profile', 'memory')


class Race(Hook):
    """Times the steps of the run it belongs to, and of contenders, each step with the same batch.

    Steps take turns: in one ours and then every contender are timed, in the next the parts of
    ours, then a profile is made, then tensors are counted; ``every`` steps make a round, and
    those left over train and nothing else. A step of ours is all that the run does with a batch,
    its hooks included.

    Args:
        contenders: Name -> an object with ``model``, ``optim_wrapper`` and ``step(batch)``.
        every: Steps of a round, at least 4. Defaults to 6.

    Attributes:
        tasks: For every task name -> seconds of each race step, 'ours' among the names; ``data``
            is what loading the batch took.
        parts: Seconds by part, of all steps that were taken apart.
        sparsity: (seconds of the group sparsity, seconds of all) of all steps profiled.
        peak: Name -> most bytes of tensors in any step, and those that the run holds between steps.
    """

    # After everything else that belongs to a step.
    priority = 'LOWEST'

    def __init__(self, contenders: dict[str, Any], every: int = 6) -> None:
        self.contenders, self.every = contenders, every
        self.tasks: list[dict[str, list[float]]] = []
        self.parts = Parts()
        self.sparsity = [0.0, 0.0]
        self.peak: dict[str, int] = defaultdict(int)
        self._number = 0
        self._since = self._left = 0.0
        self._kind = ''

    def before_forget_task(self, runner) -> None:
        self.tasks.append(defaultdict(list))

    def before_train_epoch(self, runner) -> None:
        self._left = now()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        data = now() - self._left
        turn = self._number % self.every
        self._kind = _KINDS[turn] if turn < len(_KINDS) else ''
        if self._kind == 'race':
            self.tasks[-1]['data'].append(data)
            self._batch = copy.deepcopy(data_batch)
        elif self._kind == 'parts':
            self.parts.seconds['data'] += data
            loop = runner.train_loop
            wrap_step(self.parts, loop.model.plain_model, loop.model.method, runner.optim_wrapper)
            self._running = self.parts.running()
        elif self._kind == 'profile':
            self._running = cProfile.Profile()
        elif self._kind == 'memory':
            self._batch = copy.deepcopy(data_batch)
            others = [x for c in self.contenders.values() for x in tensors_of(*_learner(c))]
            self._running = TensorMemory(all_tensors(but=others))
            self.peak[BETWEEN] = max(self.peak[BETWEEN], self._running.live)
        self._since = now()
        if self._kind in _KINDS[1:]:
            self._running.__enter__()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._kind in _KINDS[1:]:
            self._running.__exit__(None, None, None)
        took = now() - self._since
        if self._kind == 'race':
            self.tasks[-1][OURS].append(took)
            self._race(self._batch)
        elif self._kind == 'parts':
            self.parts.unwrap()
        elif self._kind == 'profile':
            self.sparsity[0] += seconds_in(self._running, 'sparsity')
            self.sparsity[1] += took
        elif self._kind == 'memory':
            self.peak[OURS] = max(self.peak[OURS], self._running.peak)
            self._weigh(self._batch)
        self._number += 1
        self._left = now()

    def _race(self, batch: dict) -> None:
        names, seconds = list(self.contenders), self.tasks[-1]
        first = len(seconds[OURS]) % max(1, len(names))
        for name in names[first:] + names[:first]:  # none always comes right after ours
            own = copy.deepcopy(batch)
            since = now()
            self.contenders[name].step(own)
            seconds[name].append(now() - since)

    def _weigh(self, batch: dict) -> None:
        for name, contender in self.contenders.items():
            with TensorMemory(tensors_of(*_learner(contender))) as memory:
                contender.step(copy.deepcopy(batch))
            self.peak[name] = max(self.peak[name], memory.peak)


def _learner(contender: Any) -> tuple:
    return contender.model, contender.optim_wrapper.optimizer


def over_request(seconds: Sequence[float], pieces: int = 9) -> float:
    """A step's mean seconds over a request: of equal pieces of it, each its median.

    What a step costs changes on the way, when groups have come to zero; the median leaves out what
    another program did to some steps.

    Args:
        seconds: Of each step, in order.
        pieces: How many at most; each has three steps or more, if there are as many at all.
    """
    count = max(1, min(pieces, len(seconds) // 3))
    edges = [round(i * len(seconds) / count) for i in range(count + 1)]
    return fmean(median(seconds[low:high]) for low, high in zip(edges, edges[1:]))


def step_ratio(seconds: dict[str, list[float]], other: str) -> float:
    """Seconds of a step of ours over those of another, over a whole request."""
    return over_request(seconds[OURS]) / over_request(seconds[other])


class RequestClock(Hook):
    """Seconds of every request of a run: from the end of the one before to its own.

    The first begins when the model to start from has been measured.

    Attributes:
        seconds: Of each request, with its evaluation.
        evaluation: Of each request, the part in which the model was evaluated.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.evaluation: list[float] = []
        self._since: float | None = None
        self._evaluating = self._evaluated = 0.0

    def before_test_epoch(self, runner) -> None:
        self._evaluating = now()

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._evaluated += now() - self._evaluating
        if self._since is None:  # the model to start from
            self._since, self._evaluated = now(), 0.0

    def before_val_epoch(self, runner) -> None:
        self.before_test_epoch(runner)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.after_test_epoch(runner, metrics)

    def after_forget_task(self, runner, metrics: dict) -> None:
        self.seconds.append(now() - self._since)
        self.evaluation.append(self._evaluated)
        self._since, self._evaluated = now(), 0.0
