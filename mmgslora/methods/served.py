"""Whether a request is served already, as the training data say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from mmgslora.families.view import Outputs, View, expected
from mmgslora.losses import mean_over_processes
from mmgslora.methods.base import Context, Task
from mmgslora.settings import NonNegative, checked


class Served:
    r"""Limits under which a request is served; no data but the training's are asked (ours).

    Over an epoch of the task (a pass through the retain view, or with ``steps_per_task`` a part of
    one), the mean over its steps of

    - the score that is left to the classes to forget where the method's (first) teacher has them,
      :math:`\sum_{q,\,c \in forget} \hat p_{qc}\, p_{qc} / \sum \hat p_{qc}` on the forget view,
      and
    - the drift of the retain view from it in all but the classes that must be gone
      (:meth:`~mmgslora.families.view.Outputs.divergence`), in nats per object.

    Both are taken from what a step computes for its losses, before the step. An epoch in which the
    method still selects what it trains (:meth:`~mmgslora.methods.base.Part.settled`) counts for
    nothing.

    What an optimizer step does never depends on it, only whether there is another one.

    Args:
        forget_score: The most that may be left, a probability. Defaults to 0.02.
        drift: The most that the retain view may have drifted, in nats. Defaults to 0.035.
    """

    @checked
    def __init__(self, forget_score: NonNegative = 0.02, drift: NonNegative = 0.035) -> None:
        self.forget_score, self.drift = forget_score, drift
        self.begin_pass()

    def settings(self) -> dict[str, float]:
        """The limits, for the record of a run."""
        return dict(forget_score=self.forget_score, drift=self.drift)

    def begin_pass(self) -> None:
        """What was seen before does not count."""
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._settled = True

    @torch.no_grad()
    def add(self, views: Mapping[str, View], context: Context) -> None:
        """See a step of the pass."""
        if not self._counts:
            self._settled = context.model.method.settled(context)
        for side, measure in _MEASURES.items():
            if side in views and views[side].teachers:
                (teacher, *_) = views[side].teachers.values()
                value = measure(views[side].now, teacher, context.task).double()
                self._sums[side] = self._sums.get(side, 0) + value
                self._counts[side] += 1

    def end_pass(self) -> dict[str, float | bool] | None:
        """What the pass said, the same in every process; None if it saw not both sides.

        Returns:
            ``forget_score``, ``drift``, and ``served``: whether the request is.
        """
        means = {k: float(mean_over_processes(s)) / self._counts[k] for k, s in self._sums.items()}
        settled = self._settled
        self.begin_pass()
        if len(means) < len(_MEASURES):
            return None
        score, drift = means['forget'], means['retain']
        served = settled and score <= self.forget_score and drift <= self.drift
        return dict(forget_score=score, drift=drift, served=served)


def _score(now: Outputs, teacher: Outputs, task: Task) -> Tensor:
    before = teacher.log_probs[:, task.forget].exp()
    return (before * now.log_probs[:, task.forget].exp()).sum() / expected(before.sum(-1))


def _drift(now: Outputs, teacher: Outputs, task: Task) -> Tensor:
    return now.divergence(teacher, without=task.must_be_gone)


_MEASURES = dict(forget=_score, retain=_drift)
