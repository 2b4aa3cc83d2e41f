"""Means over the processes of a distributed run."""

from __future__ import annotations

from mmengine.dist import all_reduce
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean over all processes, without gradient; the value itself where there is one."""
    mean = value.detach().clone()
    all_reduce(mean, op='mean')
    return mean


def mean_with_local_grad(value: Tensor) -> Tensor:
    """The mean over all processes, with the gradient of this one's value (ours).

    A function of the joint batch, such as a hinge on its mean, is then the same in every process,
    and the gradients, which training averages, add up to that of the joint batch.
    """
    return value - value.detach() + mean_over_processes(value)


def joint_weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over all processes: the value of all, the gradient of this one's (ours).

    Args:
        values: (n,) of this process; n may be 0.
        weights: (n,) from 0 up. Where all are 0 the mean is 0.
    """
    total = mean_over_processes(weights.sum()).clamp(min=1e-9)
    return mean_with_local_grad((weights * values).sum() / total)
