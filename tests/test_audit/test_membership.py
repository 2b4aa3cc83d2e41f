import numpy as np
import pytest

from mmgslora.audit.membership import membership_auc

from .flat import make_objects


def objects_of(*rows, labels=None):
    rows = np.log(np.array(rows))
    return make_objects(labels or [0] * len(rows), log_probs=rows)


def test_auc_counts_pairs():
    members = objects_of([0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.2, 0.2])
    others = objects_of([0.5, 0.3, 0.1, 0.1], [0.28, 0.24, 0.24, 0.24])
    found = membership_auc(members, others)
    # True class 0, also the largest: 0.7 beats both, 0.4 beats one of two.
    assert found['loss'] == found['confidence'] == 3 / 4
    # Entropies in nats: members 0.94, 1.33; others 1.17, 1.38.
    assert found['entropy'] == 3 / 4


def test_loss_looks_at_the_true_class_and_confidence_at_the_largest():
    members = objects_of([0.1, 0.7, 0.1, 0.1], labels=[1])
    others = objects_of([0.1, 0.8, 0.05, 0.05], labels=[0])
    found = membership_auc(members, others)
    assert found == dict(confidence=0.0, entropy=0.0, loss=1.0)


def test_no_object_is_no_class():
    # The fifth column, "no object", is large for the other: it is no confidence in a class.
    members = objects_of([0.4, 0.1, 0.1, 0.1, 0.3])
    others = objects_of([0.05, 0.03, 0.01, 0.01, 0.9])
    found = membership_auc(members, others)
    assert found == dict(confidence=1.0, entropy=0.0, loss=1.0)


def test_chance_for_the_same_distribution():
    rng = np.random.default_rng(0)
    members, others = (
        objects_of(*rng.dirichlet(np.ones(4), size=4000), labels=[0] * 4000) for _ in range(2)
    )
    for auc in membership_auc(members, others).values():
        assert auc == pytest.approx(0.5, abs=0.03)
