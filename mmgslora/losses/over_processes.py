"""Means over the processes of a distributed run."""

from __future__ import annotations

from mmengine.dist import all_reduce
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean over all processes, without gradient; the value itself where there is one."""
    mean = value.detach().clone()
    all_reduce(mean, op='mean')
    return mean


def joint_value(value: Tensor) -> Tensor:
    """The mean over all processes, with the gradient of this one's value (ours).

    A function of the joint batch, such as a hinge on its mean, is then the same in every process,
    and the gradients, which training averages, add up to that of the joint batch.
    """
    return value - value.detach() + mean_over_processes(value)
