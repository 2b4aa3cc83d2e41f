"""One step of published unlearning methods, worked out by hand for a linear softmax model.

The model has the logits ``inputs @ weight.T``: inputs (n, D), weight (C, D), float64, labels (n,).
Its gradients have closed forms, so nothing here needs autograd; SGD without momentum.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Data = tuple[Tensor, Tensor]
"""Inputs (n, D) and labels (n,)."""


def probabilities(weight: Tensor, inputs: Tensor, temperature: float = 1.0) -> Tensor:
    """(n, C) softmax of the logits over a temperature."""
    return (inputs @ weight.T / temperature).softmax(-1)


def cross_entropy_gradient(weight: Tensor, data: Data) -> Tensor:
    """Of the mean cross-entropy: (p - y)^T x / n."""
    inputs, labels = data
    wrong = probabilities(weight, inputs) - one_hot(labels, len(weight))
    return wrong.T @ inputs / len(inputs)


def divergence_gradient(
    weight: Tensor, teacher: Tensor, inputs: Tensor, temperature: float = 1.0
) -> Tensor:
    """Of the mean of T^2 KL(teacher || student), both softened by T: T (p - p_t)^T x / n."""
    student, wanted = (probabilities(w, inputs, temperature) for w in (weight, teacher))
    return temperature * (student - wanted).T @ inputs / len(inputs)


def neg_grad_plus_step(
    weight: Tensor, forget: Data, retain: Data, alpha: float, lr: float
) -> Tensor:
    """NegGrad+ (arXiv 2302.09880): descend alpha L(retain) - (1 - alpha) L(forget)."""
    kept, gone = (cross_entropy_gradient(weight, data) for data in (retain, forget))
    return weight - lr * (alpha * kept - (1 - alpha) * gone)


def salun_mask(weight: Tensor, forget: Data, share: float = 0.5) -> Tensor:
    """SalUn's saliency mask (arXiv 2310.12508): the weights that forgetting would move most.

    Args:
        weight: The weights of the original model.
        forget: All forget data.
        share: How many of the weights are salient.

    Returns:
        (C, D) bool; the ``round(share * C * D)`` entries with the greatest absolute gradient of
        the forget loss.
    """
    size = cross_entropy_gradient(weight, forget).abs().flatten()
    chosen = size.argsort(descending=True)[: round(share * len(size))]
    mask = torch.zeros(len(size), dtype=torch.bool)
    mask[chosen] = True
    return mask.view_as(weight)


def salun_step(
    weight: Tensor,
    mask: Tensor,
    relabelled: Data,
    retain: Data,
    retain_weight: float,
    lr: float,
) -> Tensor:
    """SalUn's step with random labels: only salient weights move.

    ``relabelled`` are the forget inputs with other labels than their own.
    """
    gradient = cross_entropy_gradient(weight, relabelled)
    gradient = gradient + retain_weight * cross_entropy_gradient(weight, retain)
    return weight - lr * mask * gradient


def scrub_max_step(
    weight: Tensor, teacher: Tensor, forget: Tensor, lr: float, temperature: float = 1.0
) -> Tensor:
    """SCRUB's first phase (arXiv 2302.09880): away from the teacher on the forget inputs."""
    return weight + lr * divergence_gradient(weight, teacher, forget, temperature)


def scrub_min_step(
    weight: Tensor,
    teacher: Tensor,
    retain: Data,
    alpha: float,
    gamma: float,
    lr: float,
    temperature: float = 1.0,
) -> Tensor:
    """SCRUB's second phase: descend alpha KL to the teacher + gamma L on the retain data."""
    gradient = alpha * divergence_gradient(weight, teacher, retain[0], temperature)
    return weight - lr * (gradient + gamma * cross_entropy_gradient(weight, retain))
