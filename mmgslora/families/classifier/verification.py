"""Face verification: do two images show the same person, judged by their embeddings alone?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.metrics import auc, roc_curve
from torch import Tensor

_FAR = 0.01
_MAX_IMAGES = 4000  # 8 million pairs, which grow with the square of the images


def verification_metrics(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """How well the cosine of two embeddings tells same from different, over all pairs.

    TAR at a FAR is the share of same-person pairs that are accepted at the lowest threshold at
    which the share of different-person pairs that are accepted is at most 0.01. A threshold
    that is no pair's score would not change it, so nothing is interpolated; with fewer than
    100 different-person pairs none of them may be accepted. Of more than 4,000 images only every
    k-th is taken, with the smallest k that is enough.

    Args:
        embeddings: (n, D), one image each.
        labels: (n,), who is on it.

    Returns:
        ``AUC`` (area under the ROC curve) and ``TAR@FAR=0.01`` in percent; empty where there is
        no pair of the same or none of different persons.
    """
    step = max(1, -(-len(embeddings) // _MAX_IMAGES))
    embeddings, labels = F.normalize(embeddings[::step]), labels[::step]
    first, second = torch.triu_indices(len(labels), len(labels), offset=1)
    same = labels[first] == labels[second]
    if same.all() or not same.any():  # no pair at all included
        return {}
    scores = (embeddings @ embeddings.T)[first, second]
    # Every threshold is kept: where pairs tie, one in the middle of a straight piece counts too.
    fars, tars, _ = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    return {
        'AUC': 100 * float(auc(fars, tars)),
        f'TAR@FAR={_FAR:g}': 100 * float(tars[fars <= _FAR].max()),
    }
