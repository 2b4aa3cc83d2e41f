"""The structures in which families and methods meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from torch import Tensor

from mmgslora.losses.over_processes import mean_over_processes

SIDES = ('forget', 'retain')
ROUNDING = 1e-4
"""Logits that differ by less are equal: models are run in batches of other sizes."""
BOX_ROUNDING = 1e-3
"""Distance of coordinates, in units of the image, up to which it counts squared: the slope of a
distance is 1 down to 0, and Adam would make whole steps of what is rounding."""
BOX_WEIGHT = 5.0
"""Of the L1 distance of two boxes beside the divergence of their scores: DETR's weight."""


@dataclass
class Outputs:
    """What a model says of some images: one row per prediction.

    That is every query of a detector, and one row per image of a classifier. Whatever is computed
    here is float32 or wider: sums over predictions lose their last terms in half precision.

    Attributes:
        logits: (m, C), or (m, C + 1) where a last column stands for "no object".
        embeddings: (m, D) what the classifier head reads.
        boxes: (m, 4) centre, width and height in units of the image; None without boxes.
        kind: How the model was trained to read its logits: 'sigmoid', 'softmax' or
            'softmax_background', which has the additional column.
        earlier: What the layers before the last say of the same predictions, row by row, first
            layer first: of the model that learns, where it has heads there. Defaults to none.
        states: (m, D) each, what the blocks before the last of a classifier give, where its
            classes can be read off as well. Defaults to none.
    """

    logits: Tensor
    embeddings: Tensor
    boxes: Tensor | None = None
    kind: str = 'softmax'
    earlier: tuple[Outputs, ...] = ()
    states: tuple[Tensor, ...] = ()

    def __getitem__(self, rows: Tensor) -> Outputs:
        """The predictions of a mask or of row numbers."""
        boxes = None if self.boxes is None else self.boxes[rows]
        earlier = tuple(layer[rows] for layer in self.earlier)
        states = tuple(state[rows] for state in self.states)
        return Outputs(self.logits[rows], self.embeddings[rows], boxes, self.kind, earlier, states)

    @staticmethod
    def joined(*parts: Outputs) -> Outputs:
        """The predictions of all parts, one after another."""
        boxes = None if parts[0].boxes is None else torch.cat([x.boxes for x in parts])
        logits = torch.cat([x.logits for x in parts])
        embeddings = torch.cat([x.embeddings for x in parts])
        earlier = tuple(Outputs.joined(*layers) for layers in zip(*(x.earlier for x in parts)))
        states = tuple(map(torch.cat, zip(*(x.states for x in parts))))
        return Outputs(logits, embeddings, boxes, parts[0].kind, earlier, states)

    @cached_property
    def _wide(self) -> Tensor:
        return self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))

    @cached_property
    def log_probs(self) -> Tensor:
        """(m, C) or, with a background column, (m, C + 1) log-probabilities."""
        return F.logsigmoid(self._wide) if self.kind == 'sigmoid' else self._wide.log_softmax(-1)

    @property
    def class_log_probs(self) -> Tensor:
        """(m, C) those of the classes alone."""
        return self.log_probs[:, :-1] if self.kind == 'softmax_background' else self.log_probs

    def log_odds(self, labels: Tensor) -> Tensor:
        """(m,) log-odds of these classes together against all else that a row can say."""
        ours = self._mask(labels)
        return self.log_probs[:, ours].logsumexp(-1) - self.log_probs[:, ~ours].logsumexp(-1)

    def divergence(
        self, other: Outputs, without: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """How far this is from another model's outputs of the same images (ours).

        The Kullback-Leibler divergence of the scores, some classes left out, per object that the
        other model expects among those that stay, in all processes. With sigmoids it is the sum
        over the classes. A softmax is renormalised over what stays; one without background is
        weighted by the probability that the other model gives to what stays. Boxes add their L1
        distance, smooth below :data:`BOX_ROUNDING`, weighted by :data:`BOX_WEIGHT` and by how sure
        the other model is of an object.

        Args:
            other: What is kept; no gradient flows into it.
            without: Labels of classes that do not count. Defaults to none.
            temperature: Divides both logits; the divergence is multiplied by its square.
                Defaults to 1.

        Returns:
            Tensor: Scalar, in nats.
        """
        keep = torch.ones(self.logits.shape[-1], dtype=torch.bool, device=self.logits.device)
        if without is not None:
            keep = ~self._mask(without)
        theirs = other._wide.detach() / temperature
        now, then = self._wide[:, keep] / temperature, theirs[:, keep]
        # Adam would make whole steps of what is rounding, and other ones in another batch size.
        now = torch.where((now - then).abs() < ROUNDING, then, now)
        if self.kind == 'sigmoid':
            p = then.sigmoid()
            sure = p.max(-1).values
            cross, entropy = (
                F.binary_cross_entropy_with_logits(x, p, reduction='none') for x in (now, then)
            )
            apart = (cross - entropy).sum()  # the sums themselves would cancel
        else:
            p = then.softmax(-1)
            rows = F.kl_div(now.log_softmax(-1), p, reduction='none').sum(-1)
            if self.kind == 'softmax':
                sure = theirs.softmax(-1)[:, keep].sum(-1)
                apart = (sure * rows).sum()
            else:
                sure, apart = 1 - p[:, -1], rows.sum()
        apart = apart * temperature**2
        if self.boxes is not None:
            now, then = self.boxes.to(sure.dtype), other.boxes.to(sure.dtype)
            distance = F.smooth_l1_loss(now, then, reduction='none', beta=BOX_ROUNDING)
            apart = apart + BOX_WEIGHT * (distance.sum(-1) * sure).sum()
        return apart / expected(sure)

    def _mask(self, labels: Tensor) -> Tensor:
        mask = torch.zeros(self.logits.shape[-1], dtype=torch.bool, device=self.logits.device)
        mask[labels] = True
        return mask


def expected(weights: Tensor) -> Tensor:
    """Mean over the processes of the sum of weights, such as probabilities that something is there.

    The joint sum is at least 1, so the mean over processes at least their share of that.

    Args:
        weights: (m,), or (m, n) for n sums.
    """
    return mean_over_processes(weights.sum(0)).clamp(min=1 / get_world_size())


class Matching(NamedTuple):
    """What the truth makes of a view's predictions.

    Attributes:
        labels: (n,) true label of each matched prediction.
        matched: (n,) the rows of these in the outputs.
        terms: Named scalars of the task loss, classification first (``loss_cls``, ``loss_bbox``,
            ``loss_iou`` for detectors, ``loss_ce`` for classifiers); no auxiliary layers.
    """

    labels: Tensor
    matched: Tensor
    terms: Mapping[str, Tensor]


@dataclass
class View:
    """One side of a training step: what a method may know of it, whatever is being trained.

    The truth is matched when it is first asked for, and never for a method that does not ask.

    Attributes:
        side: 'forget' or 'retain'.
        now: The model's outputs, with their graph.
        match: Gives the :class:`Matching`.
        teachers: Outputs of the method's teachers by name, without graph.
        images: How many images the view has; each has as many predictions, one after another.
    """

    side: str
    now: Outputs
    match: Callable[[], Matching] = field(repr=False)
    teachers: Mapping[str, Outputs] = field(default_factory=dict)
    images: int = 1

    @cached_property
    def _matching(self) -> Matching:
        return self.match()

    @property
    def labels(self) -> Tensor:
        """(n,) see :class:`Matching`."""
        return self._matching.labels

    @property
    def matched(self) -> Tensor:
        """(n,) see :class:`Matching`."""
        return self._matching.matched

    @property
    def terms(self) -> Mapping[str, Tensor]:
        """See :class:`Matching`."""
        return self._matching.terms

    @property
    def loss(self) -> Tensor:
        """Scalar task loss: the sum of the terms."""
        return sum(self.terms.values())
