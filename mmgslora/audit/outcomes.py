"""What became of the forgotten objects, and which retained class paid for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmgslora.audit.probes import fit_probe
from mmgslora.families.audited_model import Objects


def outcomes(
    objects: Objects,
    labels: Sequence[int],
    classes: Sequence[str],
    working: float,
    low: float,
) -> dict[str, float]:
    """What became of the true objects with these labels, in percent of them.

    Each object is one of, in this order: ``found``, its own class still has a prediction on it
    with the ``working`` score; ``called <class>``, another class has, the best one counts;
    ``low_score``, its own class has one with the ``low`` score, which a lower threshold would bring
    back; ``background``, none of these.

    Args:
        objects: True objects, of all classes or these.
        labels: The forgotten classes.
        classes: All class names.
        working: Score from which a prediction is used.
        low: A very low threshold.
    """
    objects = objects.of(labels)
    rows = np.arange(len(objects))
    own = objects.scores[rows, objects.labels]
    others = objects.scores.copy()
    others[rows, objects.labels] = -1
    found = own >= working
    called = ~found & (others.max(-1) >= working)
    low_score = ~found & ~called & (own >= low)
    names = others.argmax(-1)[called]
    shares = dict(found=found, low_score=low_score, background=~(found | called | low_score))
    percent = {name: 100 * float(mask.mean()) for name, mask in shares.items()}
    for label in np.unique(names):
        percent[f'called {classes[label]}'] = 100 * float((names == label).sum() / len(objects))
    return percent


def nearest_classes(
    train: Objects, held_out: Objects, classes: Sequence[str], layer: str
) -> dict[str, str]:
    """For every class the one that a probe of the original model takes it for most (ours).

    Of two classes, the mean probability that the probe gives the one on objects of the other is
    summed over both directions; unlike a count of confusions it leaves no ties at zero.
    """
    probe = fit_probe(train, layer)
    known = probe.classes_
    probs = probe.predict_proba(held_out.features[layer])
    mean = np.array(
        [
            probs[held_out.labels == label].mean(0)
            if (held_out.labels == label).any()
            else np.zeros(len(known))
            for label in known
        ]
    )
    mutual = mean + mean.T
    np.fill_diagonal(mutual, -1)
    return {classes[a]: classes[known[b]] for a, b in zip(known, mutual.argmax(-1))}
