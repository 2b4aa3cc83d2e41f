"""Class confusion: what a linear reader could tell classes apart by is taken away (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mmgslora.losses import joint_weighted_mean, mean_over_processes
from mmgslora.methods.base import Part

_MOMENTUM = 0.95
"""What the running sums keep of themselves from step to step."""
_RIDGE = 0.1
"""Added to the covariance, in units of its mean variance."""
_WARM_UP = 20
"""Steps of running sums before the reader is believed."""


@dataclass
class _Sums:
    """Running sums over the embeddings of one layer, k classes of width D."""

    counts: Tensor
    totals: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, classes: int, embeddings: Tensor) -> _Sums:
        width = embeddings.shape[1]
        new = embeddings.new_zeros
        return cls(new(classes), new(classes, width), new(width, width))

    def beside(self, embeddings: Tensor) -> _Sums:
        """These on the device of the embeddings: a resumed run has them on the CPU."""
        return _Sums(*(getattr(self, each.name).to(embeddings.device) for each in fields(self)))

    @property
    def means(self) -> Tensor:
        return self.totals / self.counts.clamp(min=1e-6)[:, None]

    def add(self, embeddings: Tensor, classes: Tensor) -> None:
        """Take in the embeddings (n, D) of all processes; ``classes`` (n,) from 0 to k - 1."""
        for each in fields(self):
            getattr(self, each.name).mul_(_MOMENTUM)
        ones = embeddings.new_ones(len(classes))
        counts = torch.zeros_like(self.counts).index_add_(0, classes, ones)
        totals = torch.zeros_like(self.totals).index_add_(0, classes, embeddings)
        self.counts += mean_over_processes(counts)
        self.totals += mean_over_processes(totals)
        apart = embeddings - self.means[classes]
        self.scatter += mean_over_processes(apart.T @ apart)

    def told(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """(n,) how far each embedding lies from the mean of all, to where its class does."""
        count = self.counts.sum().clamp(min=1e-6)
        share = self.counts / count
        middle = share @ self.means
        apart = self.means - middle
        total = self.scatter / count + (apart.T * share) @ apart
        ridge = _RIDGE * total.diagonal().mean().clamp(min=1e-6)
        rows = torch.linalg.solve(total + ridge * torch.eye(len(total)).to(total), apart.T).T
        return ((embeddings - middle) * rows[classes]).sum(-1)


class ClassConfusion(Part):
    r"""Embeddings of some classes are moved until a linear reader cannot tell which is which.

    .. math::
        \operatorname{mean}_n\, (e_n - \bar m)^T S^{-1} (m_{c_n} - \bar m)

    with the means m of the classes, that of all, and the covariance S of all embeddings around it,
    from running sums of all steps so far. The mean over all objects is Pillai's trace: 0 where the
    classes have one mean and no linear reader can know anything (Belrose et al. 2023, arXiv
    2306.03819), and k - 1 where it can know everything. The reader is in closed form, so that the
    adversary is always the best of its kind, and has no steps of its own. Where two classes are d
    standard deviations apart the slope goes with d / (4 + d^2) and vanishes for neither small nor
    large d as fast as that of what a softmax over the classes says: it is the gradient, through the
    means, of the information that Gaussian embeddings have about their class. The use of it for
    forgetting is ours.
    """

    def __init__(self) -> None:
        self._layers: list[_Sums] = []
        self._steps = 0

    def before_task(self, context) -> None:
        self._layers, self._steps = [], 0

    def loss(
        self,
        layers: Sequence[Tensor],
        classes: Tensor,
        count: int,
        others: Sequence[Tensor] = (),
    ) -> Tensor:
        """Scalar, the mean over the layers; the embeddings enter the sums afterwards.

        Args:
            layers: (n, D) embeddings of the same objects in each layer.
            classes: (n,) which of the classes each object is, from 0.
            count: k, how many there are; of one alone there is nothing to tell apart.
            others: (m, D) embeddings in each layer of objects that are one more class to the
                reader, and stay where they are: there is no gradient for them. Defaults to none.
        """
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in layers]
        several = count > 1 or len(others) > 0
        others = [x.detach().to(y) for x, y in zip(others, wide)] or [x[:0].detach() for x in wide]
        total = sum(x.sum() for x in wide) * 0
        if not self._layers:
            self._layers = [_Sums.empty(count + 1, x.detach()) for x in wide]
        self._layers = [sums.beside(x) for sums, x in zip(self._layers, wide)]
        seen = torch.cat([classes, classes.new_full((len(others[0]),), count)])
        # Squares of what autocast would take in half precision leave its range.
        with torch.autocast(wide[0].device.type, enabled=False):
            for sums, embeddings, beside in zip(self._layers, wide, others):
                if self._steps >= _WARM_UP and several:
                    told = sums.told(embeddings, classes)
                    total = total + joint_weighted_mean(told, torch.ones_like(told))
                sums.add(torch.cat([embeddings.detach(), beside]), seen)
        self._steps += 1
        return total / len(wide)

    def state_dict(self) -> dict[str, Any]:
        layers = [
            {each.name: getattr(sums, each.name).clone() for each in fields(sums)}
            for sums in self._layers
        ]
        return dict(steps=self._steps, layers=layers)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = state.get('steps', 0)
        self._layers = [_Sums(**layer) for layer in state.get('layers', [])]
