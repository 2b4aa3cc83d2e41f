"""Probes: can the forgotten classes still be read off what the model computes inside?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mmgslora.families.audited_model import Objects


def fit_probe(objects: Objects, layer: str, kind: str = 'probe') -> Pipeline:
    """Learn to name every class from the features of a layer, standardised.

    Args:
        objects: Training objects of all classes.
        layer: Which features to read.
        kind: 'probe' for multinomial logistic regression (L2, C = 1), 'prototype' for the
            nearest class mean. Defaults to 'probe'.
    """
    reader = LogisticRegression(max_iter=1000) if kind == 'probe' else NearestCentroid()
    return make_pipeline(StandardScaler(), reader).fit(objects.features[layer], objects.labels)


def probe_accuracy(
    train: Objects,
    held_out: Objects,
    labels: Sequence[int],
    kind: str = 'probe',
) -> dict[str, float]:
    """Percent of the held-out objects with these labels that a probe names, layer by layer.

    The probe has to tell all classes in ``train`` apart, not only those to be named.

    Args:
        train: Objects of all classes to learn from.
        held_out: Objects to be named; those with other labels are not counted.
        labels: The classes to be named.
        kind: See :func:`fit_probe`.
    """
    named = held_out.of(labels)
    return {
        layer: 100 * float(fit_probe(train, layer, kind).score(named.features[layer], named.labels))
        for layer in train.features
    }


def draw_objects(objects: Objects, share: float, seed: int) -> Objects:
    """A random share of the objects, in their order."""
    rng = np.random.default_rng(seed)
    return objects[np.sort(rng.permutation(len(objects))[: int(share * len(objects))])]
