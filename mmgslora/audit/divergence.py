"""Divergence of outputs: from the oracle's, and from a model's that never saw any data."""

from __future__ import annotations

import numpy as np

from mmgslora.families.audited_model import Objects


def js_divergence(one: Objects, other: Objects) -> float:
    """Mean Jensen-Shannon divergence of two models' predictions on the same objects.

    In bits, so that it lies between 0 (the same) and 1. Predictions are paired by the object
    they sit on: the queries of two detectors do not correspond to each other.
    """
    return float(_js_bits(one.log_probs, other.log_probs).mean())


def zero_retrain_forgetting(unlearned: Objects, untrained: Objects) -> float:
    """ZRF of Chundawat et al. (arXiv 2205.08096, section 5): 1 - mean JS to a random model.

    .. math:: ZRF = 1 - \\frac{1}{n_f} \\sum_{i=1}^{n_f} JS\\big(M(x_i), T_d(x_i)\\big)

    over the forget data, with :math:`T_d` randomly initialised. Near 1: nothing is said of the
    forgotten that a model without any training would not say.
    """
    return 1 - js_divergence(unlearned, untrained)


def _js_bits(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    log_p, log_q = log_p.astype(np.float64), log_q.astype(np.float64)
    log_m = np.logaddexp(log_p, log_q) - np.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / (2 * np.log(2))


def _kl(log_p: np.ndarray, log_m: np.ndarray) -> np.ndarray:
    # log m >= log p - log 2, so it is finite wherever p is not zero.
    with np.errstate(invalid='ignore'):
        return np.where(np.isneginf(log_p), 0, np.exp(log_p) * (log_p - log_m)).sum(-1)
