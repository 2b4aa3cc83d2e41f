"""Membership inference: does the model tell its training objects from others of the class?"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from mmgslora.families.audited_model import Objects

ATTACKS = ('confidence', 'entropy', 'loss')


def membership_auc(members: Objects, others: Objects) -> dict[str, float]:
    """AUC of three attacks that threshold one number of the prediction on an object.

    A member is expected to have a higher ``confidence`` (the largest class probability), a lower
    ``entropy`` (of the whole prediction) and a lower ``loss`` (-log of the true class's
    probability; Yeom et al., arXiv 1709.01604). 0.5 is chance; below it, members stand out the
    other way round.

    Args:
        members: Training objects of the forgotten classes.
        others: Held-out objects of the same classes.
    """
    is_member = np.repeat([True, False], [len(members), len(others)])
    signals = [_signals(objects) for objects in (members, others)]
    return {
        attack: float(
            roc_auc_score(is_member, np.concatenate([signal[attack] for signal in signals]))
        )
        for attack in ATTACKS
    }


def _signals(objects: Objects) -> dict[str, np.ndarray]:
    """What each attack thresholds, higher for a supposed member."""
    log_probs = objects.log_probs.astype(np.float64)
    classes = log_probs[:, : objects.scores.shape[1]]
    return dict(
        confidence=classes.max(-1),
        entropy=(np.exp(log_probs) * log_probs).sum(-1),
        loss=log_probs[np.arange(len(objects)), objects.labels],
    )
