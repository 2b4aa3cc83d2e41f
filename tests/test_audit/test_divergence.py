import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from mmgslora.audit.divergence import js_divergence, zero_retrain_forgetting

from .flat import make_objects


def objects_of(rows):
    with np.errstate(divide='ignore'):
        return make_objects([0] * len(rows), log_probs=np.log(np.array(rows, dtype=float)))


@pytest.mark.parametrize(
    ('p', 'q', 'bits'),
    [
        ([1, 0], [0, 1], 1.0),
        ([0.3, 0.7], [0.3, 0.7], 0.0),
        # H(3/4, 1/4) - (H(1/2, 1/2) + H(1, 0)) / 2 = 0.811278 - 0.5
        ([0.5, 0.5], [1, 0], 0.311278),
    ],
)
def test_values_by_hand(p, q, bits):
    assert js_divergence(objects_of([p]), objects_of([q])) == pytest.approx(bits, abs=1e-6)
    assert js_divergence(objects_of([q]), objects_of([p])) == pytest.approx(bits, abs=1e-6)


def test_mean_over_objects_against_scipy():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), size=(2, 40))
    expected = np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q)])
    assert js_divergence(objects_of(p), objects_of(q)) == pytest.approx(expected, rel=1e-9)


def test_zrf_is_one_minus_the_divergence_from_the_untrained():
    ours = objects_of([[0.5, 0.5], [1, 0]])
    untrained = objects_of([[1, 0], [0, 1]])
    expected = 1 - (0.311278 + 1) / 2
    assert zero_retrain_forgetting(ours, untrained) == pytest.approx(expected, abs=1e-6)
    assert zero_retrain_forgetting(ours, ours) == 1
