"""The whole audit of one forgotten model, measure by measure and model by model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import fmean
from typing import Annotated, TypeVar

import numpy as np
from pydantic import Field

from mmgslora.audit.divergence import js_divergence, zero_retrain_forgetting
from mmgslora.audit.membership import membership_auc
from mmgslora.audit.outcomes import nearest_classes, outcomes
from mmgslora.audit.probes import draw_objects, probe_accuracy
from mmgslora.audit.relearning import STEPS, Curve, relearning_curve
from mmgslora.audit.rows import HEAD_ONLY, ORACLE, ORIGINAL, UNLEARNED, UNSEEN, is_oracle
from mmgslora.errors import ForgettingError
from mmgslora.families.audited_model import AuditedModel, Images, Objects
from mmgslora.settings import (
    Count,
    NonNegativeCount,
    Positive,
    PositiveShare,
    Share,
    wrong_values,
)

MEASURES = (
    *('output', 'outcomes', 'localisation', 'probe', 'membership'),
    *('divergence', 'relearning', 'new_head'),
)
NEW_HEAD_IMAGES, NEW_HEAD_STEPS = 16, 20
MORE = '/more'
"""What a unit is called that repeats an attack with further draws."""
_FURTHER = 2
_OF_UNSEEN = ('probe', 'relearning', 'new_head')


_T = TypeVar('_T')
Several = Annotated[tuple[_T, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Settings:
    """What an audit's numbers depend on, apart from models and data.

    A list, as configs have it, stands for a tuple; one seed, k or step for a tuple of one.

    Attributes:
        seeds: One repetition per seed: other images to relearn from, other training objects for
            probes and membership, another random model.
        train_images: Most training images that probes and membership look at.
        held_out_images: Most held-out images that they are scored on; AP is measured on all.
        probe_share: Share of the training objects that one repetition of a probe learns from.
        relearning_images: k, how many images the attacker has.
        relearning_steps: Steps after which is measured, the first being 0.
        relearning_lr: Learning rates of the attack; the one that brings most back in the first
            draw serves all draws, for every model its own. A single number is allowed.
        relearning_batch: Most images per step of the attack.
        relearning_measured_on: Most held-out images that its curve is measured on.
        working_score, low_score: See :func:`outcomes`.

    Raises:
        ForgettingError: A value is not what it can be, a list empty, or a seed or k there twice.
    """

    seeds: Several[NonNegativeCount] = (0, 1, 2)
    train_images: Count = 1000
    held_out_images: Count = 1000
    probe_share: PositiveShare = 0.8
    relearning_images: Several[Count] = (16, 64)
    relearning_steps: Several[NonNegativeCount] = STEPS
    relearning_lr: Positive | Several[Positive] = (2e-4, 5e-4, 1.5e-3)
    relearning_batch: Count = 16
    relearning_measured_on: Count = 100
    working_score: Share = 0.3
    low_score: Share = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            if isinstance(value, int) and name in (
                'seeds',
                'relearning_images',
                'relearning_steps',
            ):
                object.__setattr__(self, name, (value,))
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        wrong = wrong_values(type(self).__init__, vars(self), 'audit')
        if wrong:
            raise ForgettingError(' '.join(wrong))
        for name in ('seeds', 'relearning_images'):
            value = getattr(self, name)
            if len(set(value)) < len(value):
                raise ForgettingError(f'audit: {name} is {value}; each can be there once.')
        if list(self.relearning_steps) != sorted(set(self.relearning_steps)):
            raise ForgettingError(
                f'audit: relearning_steps is {self.relearning_steps}; each must be above the one '
                'before.'
            )
        if self.relearning_steps[-1] == 0:
            raise ForgettingError(
                'audit: relearning_steps is (0,), after which nothing is learned; its last must be '
                'at least 1.'
            )


class Audit:
    """Measures the models of one audit.

    Args:
        models: 'unlearned', the model that forgot; 'original', the one before; where there is
            one, 'oracle', trained without the classes; and, where it is asked for, 'head only',
            see :func:`without_rows`.
        train: Training images, of all classes.
        held_out: Images that none of the models was trained on.
        labels: The classes that must be gone.
        settings: See :class:`Settings`.
        missing: Classes that must stay but had no training data. Defaults to none.
        unseen: Training and held-out images in which other classes, that the original has never
            seen, have the labels of the forgotten ones: a reference without an oracle, model
            'unseen' in the rows. Defaults to none.
        known: Model -> AP or accuracy of each class, in percent, where the run has measured the
            very file on the same images: it is taken as it is. Defaults to None.

    Raises:
        ForgettingError: Training or held-out images show none of the classes.
    """

    def __init__(
        self,
        models: Mapping[str, AuditedModel],
        train: Images,
        held_out: Images,
        labels: Sequence[int],
        settings: Settings | None = None,
        missing: Sequence[int] = (),
        known: Mapping[str, Mapping[str, float]] | None = None,
        unseen: tuple[Images, Images] | None = None,
    ) -> None:
        self.models = dict(models)
        self.train, self.held_out = train, held_out
        self._unseen = unseen
        if unseen is not None:
            self.models[UNSEEN] = models[ORIGINAL].on_classes(unseen[0].classes)
        self.labels = list(labels)
        self.settings = settings or Settings()
        self.classes = train.classes
        for images, what in ((train, 'training'), (held_out, 'held-out')):
            if not len(images.holding(self.labels)):
                names = ', '.join(self.classes[label] for label in self.labels)
                raise ForgettingError(
                    f'No {what} image shows {names}; an audit needs some of what was forgotten.'
                )
        self.missing, self.known = list(missing), dict(known or {})
        stay = {*range(len(self.classes))} - {*self.labels, *self.missing}
        self.retained = sorted(stay)
        self.nearest: dict[str, str] = {}
        self.objects = lru_cache(maxsize=None)(self._objects)
        self._at_start: dict[str, float] = {}

    def units(self, measures: Sequence[str] = MEASURES) -> Iterator[tuple[str, str]]:
        """(unit, model) in the order in which they are to be measured.

        A unit is what is computed and stored at once: a measure, or one k of relearning.

        Args:
            measures: Some of :data:`MEASURES`, or of the units. Defaults to all.

        Raises:
            ForgettingError: There is no such measure.
        """
        units_of = {measure: [measure] for measure in MEASURES}
        units_of['relearning'] = [f'relearning/k{k}' for k in self.settings.relearning_images]
        allowed = {*MEASURES, *units_of['relearning']}
        if unknown := [name for name in measures if name not in allowed]:
            raise ForgettingError(
                f'There is no measure {unknown[0]!r}; allowed are {", ".join(sorted(allowed))}.'
            )
        for measure, units in units_of.items():
            for unit in units:
                if measure not in measures and unit not in measures:
                    continue
                oracles = [model for model in self.models if is_oracle(model)]
                for model in (UNLEARNED, *oracles, ORIGINAL, HEAD_ONLY, UNSEEN):
                    if model in self.models and (model != UNSEEN or measure in _OF_UNSEEN):
                        yield unit, model

    def measure(self, unit: str, model: str, lr: float | None = None) -> list[dict]:
        """The rows ``{'model', 'seed', 'measure', 'value'}`` of one unit for one model.

        ``seed`` is None where nothing is drawn. Rows of an attack say its learning rate, ``lr``,
        too. A unit of relearning or a new head that ends in :data:`MORE` has further draws.

        Args:
            unit: One of :meth:`units`, or of further draws.
            model: The model.
            lr: Of an attack; further draws need that of the first. Defaults to None: the best.
        """
        name, _, k = unit.removesuffix(MORE).partition('/k')
        seeds = self.settings.seeds
        if unit.endswith(MORE):
            seeds = tuple(max(seeds) + 1 + i for i in range(_FURTHER))
        if name == 'relearning':
            return list(self._relearning(model, int(k), seeds, lr))
        if name == 'new_head':
            return list(self._new_head(model, seeds, lr))
        return [
            dict(model=model, seed=seed, measure=measure, value=value)
            for measure, seed, value in getattr(self, f'_{name}')(model)
        ]

    def _objects(self, model: str, part: str) -> Objects:
        """True objects as a model sees them; ``part`` is 'train' or 'held_out'."""
        data = self._data(model)[part == 'held_out']
        count = getattr(self.settings, f'{part}_images')
        images = np.arange(len(data))
        if count < len(data):
            images = np.sort(data.draw(range(len(self.classes)), count, seed=0))
        return self.models[model].objects(data, images)

    def _data(self, model: str) -> tuple[Images, Images]:
        """Training and held-out images."""
        return self._unseen if model == UNSEEN else (self.train, self.held_out)

    def _output(self, model: str) -> Iterator[tuple[str, None, float]]:
        audited = self.models[model]
        per_class = self.known.get(model) or audited.evaluate(self.held_out, gone=self.labels)
        groups = dict(gone=self.labels, r=self.retained, m=self.missing)
        for group, labels in groups.items():
            values = [per_class[self.classes[i]] for i in labels if self.classes[i] in per_class]
            if values:
                yield f'output/{audited.metric}_{group}', None, fmean(values)
        for name, value in per_class.items():
            yield f'output/per_class/{name}', None, value

    def _outcomes(self, model: str) -> Iterator[tuple[str, None, float]]:
        objects = self.objects(model, 'held_out')
        thresholds = self.settings.working_score, self.settings.low_score
        shares = outcomes(objects, self.labels, self.classes, *thresholds)
        for name, percent in shares.items():
            yield f'outcomes/{name}', None, percent
        if model == ORIGINAL:
            train = self.objects(model, 'train')
            last = list(train.features)[-1]
            self.nearest = nearest_classes(train, objects, self.classes, last)

    def _localisation(self, model: str) -> Iterator[tuple[str, None, float]]:
        """How well the best box lies on objects, whatever it is called; nothing without boxes."""
        objects = self.objects(model, 'held_out')
        for side, labels in dict(forget=self.labels, retain=self.retained).items():
            chosen = objects.of(labels)
            if chosen.overlaps is not None and len(chosen):
                yield f'localisation/{side}', None, 100 * float(chosen.overlaps.mean())

    def _probe(self, model: str) -> Iterator[tuple[str, int, float]]:
        train, held_out = (self.objects(model, part) for part in ('train', 'held_out'))
        for kind in ('prototype', 'probe'):
            for seed in self.settings.seeds:
                drawn = draw_objects(train, self.settings.probe_share, seed)
                accuracy = probe_accuracy(drawn, held_out, self.labels, kind=kind)
                for layer, value in accuracy.items():
                    yield f'{kind}/{layer}', seed, value

    def _membership(self, model: str) -> Iterator[tuple[str, int, float]]:
        members, others = (self.objects(model, p).of(self.labels) for p in ('train', 'held_out'))
        for seed in self.settings.seeds:
            drawn = draw_objects(members, self.settings.probe_share, seed)
            for attack, auc in membership_auc(drawn, others).items():
                yield f'membership/{attack}', seed, auc

    def _divergence(self, model: str) -> Iterator[tuple[str, int | None, float]]:
        objects = self.objects(model, 'held_out')
        sides = dict(forget=self.labels, retain=self.retained)
        if ORACLE in self.models and not is_oracle(model):
            oracle = self.objects(ORACLE, 'held_out')
            for side, labels in sides.items():
                value = js_divergence(objects.of(labels), oracle.of(labels))
                yield f'divergence/oracle_{side}', None, value
        for seed in self.settings.seeds:
            untrained = self._untrained(seed)
            yield (
                'divergence/ZRF',
                seed,
                zero_retrain_forgetting(objects.of(self.labels), untrained.of(self.labels)),
            )

    @cache  # noqa: B019  an audit lives as long as its process
    def _untrained(self, seed: int) -> Objects:
        images = np.unique(self.objects(UNLEARNED, 'held_out').images)
        return self.models[UNLEARNED].untrained(seed).objects(self.held_out, images)

    def _relearning(
        self, model: str, images: int, seeds: Sequence[int], lr: float | None
    ) -> Iterator[dict]:
        steps = self.settings.relearning_steps
        subjects = dict.fromkeys(seeds, self.models[model])
        if model == UNSEEN:  # whose rows are those of the forgotten classes
            subjects = self._with_new_rows(model, seeds)
        for row in self._attack(f'relearning/k{images}', model, subjects, images, steps, lr):
            if row['measure'].endswith('/step0') and model != UNSEEN:
                self._at_start[model] = row['value']
            yield row

    def _new_head(self, model: str, seeds: Sequence[int], lr: float | None) -> Iterator[dict]:
        """Relearning as the verdict compares it, by an attacker who starts the rows anew."""
        subjects, name = self._with_new_rows(model, seeds), f'new_head/k{NEW_HEAD_IMAGES}'
        yield from self._attack(name, model, subjects, NEW_HEAD_IMAGES, (NEW_HEAD_STEPS,), lr)

    def _with_new_rows(self, model: str, seeds: Sequence[int]) -> dict[int, AuditedModel]:
        return {seed: self.models[model].with_new_rows(self.labels, seed) for seed in seeds}

    def _attack(
        self,
        name: str,
        model: str,
        subjects: Mapping[int, AuditedModel],
        images: int,
        steps: Sequence[int],
        lr: float | None,
    ) -> Iterator[dict]:
        """Rows of every draw, at ``lr`` or the rate that is best for the attacker in the first."""

        def curve(seed: int, lr: float) -> Curve:
            return relearning_curve(
                subjects[seed],
                *self._data(model),
                self.labels,
                images,
                seed,
                steps=steps,
                lr=lr,
                batch_size=self.settings.relearning_batch,
                measured_on=self.settings.relearning_measured_on,
                at_start=self._at_start.get(model),
            )

        rates = self.settings.relearning_lr if lr is None else lr
        rates = rates if isinstance(rates, Sequence) else (rates,)
        first = next(iter(subjects))
        tried = {lr: curve(first, lr) for lr in rates}
        best = max(tried, key=lambda lr: tried[lr].values[-1])
        for seed in subjects:
            found = tried[best] if seed == first else curve(seed, best)
            for step, value in zip(found.steps, found.values):
                yield dict(
                    seed=seed, measure=f'{name}/step{step}', value=value, model=model, lr=best
                )
