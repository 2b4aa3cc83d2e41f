"""Against counting by hand and scikit-learn's roc_auc_score on pairs made one by one."""

import math
from itertools import combinations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from mmgslora.families.classifier import verification
from mmgslora.families.classifier.verification import verification_metrics


def at(*degrees):
    """Unit vectors at angles in the plane: the cosine of two is that of their difference."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def pairs(embeddings, labels):
    """(same person?, cosine) of every pair."""
    return [
        (
            bool(labels[i] == labels[j]),
            torch.dot(embeddings[i], embeddings[j]).item()
            / math.sqrt(embeddings[i].square().sum() * embeddings[j].square().sum()),
        )
        for i, j in combinations(range(len(labels)), 2)
    ]


# Persons a at 0, 10 and 50 degrees, b at 30 and 101. Same persons are 10, 50, 40 and 71 apart,
# different ones 30, 101, 20, 91, 20 and 51.
EMBEDDINGS, LABELS = at(0, 10, 50, 30, 101), torch.tensor([0, 0, 0, 1, 1])


def test_auc_by_hand():
    # Of the six different pairs, 10 is closer than all, 40 and 50 than three, 71 than two.
    assert verification_metrics(EMBEDDINGS, LABELS)['AUC'] == pytest.approx(100 * 14 / 24)


# Of the different pairs 20, 20, 30 | 51 | 91, 101 are accepted at these FARs, and the same ones
# that are closer than the first refused.
@pytest.mark.parametrize(
    'far, tar', [(0.01, 25), (0.33, 25), (0.49, 25), (0.5, 75), (0.66, 75), (4 / 6, 100), (1, 100)]
)
def test_tar_by_hand_and_not_interpolated(far, tar, monkeypatch):
    monkeypatch.setattr(verification, '_FAR', far)
    metrics = verification_metrics(EMBEDDINGS, LABELS)
    assert metrics[f'TAR@FAR={far:g}'] == pytest.approx(tar)


def test_ties_are_not_told_apart():
    metrics = verification_metrics(at(0, 0, 0), torch.tensor([0, 0, 1]))
    assert metrics == {'AUC': 50, 'TAR@FAR=0.01': 0}


def test_random_embeddings_against_scikit_learn():
    labels = torch.randint(0, 6, (40,))
    embeddings = torch.randn(40, 8) + 0.7 * torch.randn(6, 8)[labels]
    embeddings *= torch.rand(40, 1) + 0.1  # lengths do not count
    made = pairs(embeddings.double(), labels)
    metrics = verification_metrics(embeddings.double(), labels)
    assert metrics['AUC'] == pytest.approx(100 * roc_auc_score(*zip(*made)))
    different = sorted((score for same, score in made if not same), reverse=True)
    # At most 1 % of the different pairs may reach the threshold: it is above the next one.
    first_refused = different[int(0.01 * len(different))]
    accepted = [score > first_refused for same, score in made if same]
    assert metrics['TAR@FAR=0.01'] == pytest.approx(100 * sum(accepted) / len(accepted))
    assert 50 < metrics['AUC'] < 100 and 0 < metrics['TAR@FAR=0.01'] < 100


def test_perfect_and_reversed():
    far_apart = verification_metrics(at(0, 1, 90, 91), torch.tensor([0, 0, 1, 1]))
    assert far_apart == {'AUC': 100, 'TAR@FAR=0.01': 100}
    reversed_ = verification_metrics(at(0, 90, 1, 91), torch.tensor([0, 0, 1, 1]))
    # Different persons 1, 1, 89 and 91 degrees apart, the same ones 90: 1 of 4 is farther.
    assert reversed_ == {'AUC': 25, 'TAR@FAR=0.01': 0}


@pytest.mark.parametrize('labels', [[], [3], [3, 3, 3], [0, 1, 2]])
def test_left_out_without_pairs_of_both_kinds(labels):
    labels = torch.tensor(labels, dtype=torch.long)
    assert verification_metrics(torch.randn(len(labels), 4), labels) == {}


def test_many_images_are_thinned(monkeypatch):
    # Nine images and room for four: every third stays, at 0, 40 and 60 degrees.
    embeddings = at(0, 0, 0, 40, 0, 0, 60, 0, 0)
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 0])
    whole = verification_metrics(embeddings, labels)
    monkeypatch.setattr(verification, '_MAX_IMAGES', 4)
    thinned = verification_metrics(embeddings, labels)
    # The same person 40 degrees apart; different ones 60 and 20.
    assert thinned == {'AUC': 50, 'TAR@FAR=0.01': 0}
    assert whole != thinned
