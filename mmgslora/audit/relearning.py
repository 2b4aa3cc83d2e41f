"""Relearning attack: how fast do a few images bring the forgotten classes back?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mmgslora.families.audited_model import AuditedModel, Images

STEPS = (0, 10, 20)


@dataclass(frozen=True)
class Curve:
    """Mean AP or accuracy of the classes that must be gone, in percent, over an attack's steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def at(self, step: int) -> float:
        """The value after this many steps, which must have been measured."""
        return self.values[self.steps.index(step)]


def relearning_curve(
    audited: AuditedModel,
    train: Images,
    held_out: Images,
    labels: Sequence[int],
    images: int,
    seed: int,
    steps: Sequence[int] = STEPS,
    lr: float = 5e-4,
    batch_size: int = 16,
    measured_on: int | None = None,
    at_start: float | None = None,
) -> Curve:
    """Train a copy on a few images of the classes and watch them come back.

    All models given the same arguments relearn the same images in the same order. How many
    images one needs is the question of Golatkar et al. (arXiv 1911.04933), who asked it of time.

    Args:
        audited: The model under attack; it is left as it is.
        train: Images to relearn from, with the true objects of ``labels`` alone.
        held_out: Images to measure on, those with an object of ``labels``.
        labels: The classes to bring back.
        images: How many images the attacker has; they are drawn by :meth:`Images.draw`.
        seed: Seed of the draw and of the order.
        steps: Numbers of steps to measure after, ascending. Defaults to (0, 10, 20).
        lr: Learning rate of AdamW. Defaults to 5e-4.
        batch_size: Most images per step. Defaults to 16.
        measured_on: Most held-out images; the same ones in every call. Defaults to None: all.
        at_start: The value at step 0, where it is known from another call. Defaults to None.
    """
    shown = train.draw(labels, images, seed)
    where = held_out.holding(labels)
    if measured_on is not None and measured_on < len(where):
        where = held_out.draw(labels, measured_on, seed=0)
    values = [
        at_start
        if step == 0 and at_start is not None
        else _mean_of(copy.evaluate(held_out, where, gone=labels), labels, held_out.classes)
        for step, copy in audited.relearn(train, shown, labels, steps, lr, batch_size, seed)
    ]
    return Curve(tuple(steps), tuple(values))


def _mean_of(per_class: dict[str, float], labels: Sequence[int], classes: Sequence[str]) -> float:
    names = {classes[label] for label in labels}
    return fmean(value for name, value in per_class.items() if name in names)


def area_between(curve: Curve, oracle: Curve) -> float:
    """Mean over the steps after the first of how far a curve is above the oracle's, in points.

    Step 0 is left out: it measures forgetting, not relearning.
    """
    pairs = zip(curve.steps, curve.values, oracle.values)
    return fmean(value - reference for step, value, reference in pairs if step > 0)


def steps_to_oracle(curve: Curve, oracle: Curve) -> int | None:
    """The first measured step at which a curve has what the oracle has at its end."""
    pairs = zip(curve.steps, curve.values)
    return next((step for step, value in pairs if value >= oracle.values[-1]), None)
