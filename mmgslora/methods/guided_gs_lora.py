"""Guided GS-LoRA: what is forgotten and what is held is said by the teacher (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from torch import Tensor

from mmgslora.losses import (
    bounded_ascent,
    class_mean_shift,
    joint_value,
    joint_weighted_mean,
    mean_over_processes,
)
from mmgslora.methods.base import Method, check_choice, number, per_task

if TYPE_CHECKING:
    from mmgslora.families.view import View

NEGLIGIBLE = -9.0
"""A log-probability under which no class is looked for any more, in nats (ours)."""


@MODELS.register_module()
class GuidedGSLoRA(Method):
    r"""Group sparse LoRA guided by the teacher, the model at the start of the task (ours).

    .. math:: L = \beta\, L_f + L_r + \lambda\, (D_f + D_r) + w_b\, B + w_p\, P + w_h\, H

    :math:`L_r` is the task loss of the retain view, :math:`D` the distance of each view's outputs
    from the teacher's in everything but the classes to forget (``View.drift``). Let
    :math:`\hat p_{qc}` be the teacher's probability of class c in prediction q, and
    :math:`\hat b_q = 1 - \max_c \hat p_{qc}` that of nothing being there.

    - :math:`L_f` with ``forget_loss='predictions'``, for detectors:
      :math:`\sum_{q,\,c \in forget} \hat p_{qc}\,
      \mathrm{ReLU}(\log p_{qc} - \ell_c + m) / \sum \hat p_{qc}`,
      a hinge on every prediction and every class to forget. :math:`\ell_c = \sum_q \hat b_q \log
      \hat p_{qc} / \sum_q \hat b_q` is the log-probability that the teacher gives the class where
      there is nothing: an object must rank below that by the margin m, for AP is a ranking, and
      further down nothing is gained. No query is left that could name the class, whichever it is
      matched to, and predictions that never meant the class stay where they are.
    - :math:`B = \sum_q \hat b_q \operatorname{mean}_{c\,gone} (\log p_{qc} - \log \hat p_{qc})^2 /
      \sum_q \hat b_q`, over all classes that must be gone, holds their scores where there is
      nothing. The cheapest way to lower a class is to lower it everywhere, which leaves the ranking
      as it was; and a class that is gone would come up again while others are forgotten. Where
      both log-probabilities are under :data:`NEGLIGIBLE` their difference counts as 0.
    - :math:`L_f` with ``forget_loss='odds'``, for softmax heads: :math:`\sum_q \hat P_q\,
      \mathrm{ReLU}(BND + \log P_q - \log(1 - P_q)) / \sum \hat P_q`, one hinge on each prediction's
      odds of naming any class that must be gone, P, weighted by the teacher's probability of
      those to forget now. The gradient of log p, 1 - p, vanishes where the model is certain, that
      of the odds does not; and what one forgotten class loses does not go to another.
    - :math:`P` moves every class to forget, on average, by what separates its prototype from the
      centre of all prototypes, so that the classes that are gone share one mean embedding and a
      linear probe has nothing to tell them apart by, and :math:`H` holds what the teacher takes
      for something else where the teacher has it:

      .. math::
          P = \operatorname{mean}_{c} \tfrac1D \Bigl\lVert \frac{\sum_q [\hat p_{qc} > \frac12]\,
          (e_q - t_q)}{\sum_q [\hat p_{qc} > \frac12]} - (\bar p - p_c) \Bigr\rVert^2, \qquad
          H = \frac{\sum_q \hat r_q \tfrac1D \lVert e_q - t_q \rVert^2}{\sum_q \hat r_q}

      with the embeddings e of now and t of the teacher behind prediction q, and the teacher's
      probability :math:`\hat r` of the likeliest class that is not to forget.

    Every normaliser counts the predictions of all processes, so that the mean gradient over the
    processes is that of the joint batch.

    Args:
        forget_loss: 'predictions' (detectors) or 'odds' (classifiers). Defaults to 'predictions'.
        margin: m, in nats; 'predictions' only. Defaults to 3.
        bound: BND, in nats; 'odds' only. Defaults to 9.
        beta: Weight of the forget term, one number or one per task (the last one serves all
            further tasks). Defaults to 1.
        distill_weight: :math:`\lambda`. Defaults to 5.
        background_weight: :math:`w_b`. Defaults to 0.2.
        prototype_weight: :math:`w_p`, one number or one per task. Defaults to 2; with 0 no
            prototypes are computed.
        feature_distill_weight: :math:`w_h`. Defaults to 0.5.
        prototypes: 'embeddings' (the mean embedding of each class over the training data) or
            'head' (its row in the classifier's weight). Defaults to 'embeddings'.
        prototype_file: Take the prototypes from this file, made by an earlier run from the same
            model, instead of computing them. Defaults to None.
        sparsity: See :class:`Method`; given keys override the defaults, 'proximal' of weight 0.3
            by block, selecting in the first third of a task.
        dropout: See :class:`Method`. Defaults to False.

    Raises:
        ForgettingError: ``forget_loss`` or ``prototypes`` is unknown, a number is negative or not
            finite, or see :class:`Method`.
    """

    needs_teacher = True

    def __init__(
        self,
        forget_loss: str = 'predictions',
        margin: float = 3.0,
        bound: float = 9.0,
        beta: float | Sequence[float] = 1.0,
        distill_weight: float = 5.0,
        background_weight: float = 0.2,
        prototype_weight: float | Sequence[float] = 1.0,
        feature_distill_weight: float = 0.5,
        prototypes: str = 'embeddings',
        prototype_file: str | None = None,
        sparsity: dict | None = None,
        dropout: bool = False,
    ) -> None:
        super().__init__(dict(mode='proximal', alpha=0.3, select=1 / 3) | (sparsity or {}), dropout)
        check_choice('forget_loss', forget_loss, ('predictions', 'odds'))
        check_choice('prototypes', prototypes, ('embeddings', 'head'))
        self.forget_loss = forget_loss
        self.margin, self.bound = number('margin', margin), number('bound', bound)
        self.betas = per_task('beta', beta)
        self.distill_weight = number('distill_weight', distill_weight)
        self.background_weight = number('background_weight', background_weight)
        self.prototype_weights = per_task('prototype_weight', prototype_weight)
        self.feature_distill_weight = number('feature_distill_weight', feature_distill_weight)
        self.prototype_source = prototypes if any(self.prototype_weights) else None
        self.prototype_file = prototype_file

    @property
    def beta(self) -> float:
        """The weight of the forget term in the task of the moment."""
        return self.of_task(self.betas)

    @property
    def prototype_weight(self) -> float:
        """w_p in the task of the moment."""
        return self.of_task(self.prototype_weights)

    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """See :class:`Method`."""
        losses = self.retain_losses(retain)
        teacher, empty = _teacher(forget, retain)
        odds = self.forget_loss == 'odds'
        hinge = self._odds(forget) if odds else self._hinge(forget, teacher, empty)
        losses['forget_loss_cls'] = self.beta * hinge
        if self.distill_weight:
            losses['forget_loss_drift'] = self.distill_weight * forget.drift
            losses['retain_loss_drift'] = self.distill_weight * retain.drift
        if self.background_weight:
            moved = self._background(teacher, empty, forget, retain)
            losses['loss_background'] = self.background_weight * moved
        if self.prototype_weight:
            losses['forget_loss_prototype'] = self.prototype_weight * self._off_centre(forget)
        if self.feature_distill_weight:
            moved = self._moved(forget.classes, forget, retain)
            losses['retain_loss_prototype'] = self.feature_distill_weight * moved
        return losses

    def _hinge(self, forget: View, teacher: Tensor, empty: Tensor) -> Tensor:
        """L_f of 'predictions'; the teacher's values are those of both views."""
        empty_sum = mean_over_processes(empty.sum()).clamp(min=1e-9)
        level = mean_over_processes(empty @ teacher[:, forget.classes]) / empty_sum
        log_probs = _at_least_float32(forget.log_probs[:, forget.classes])
        teacher_prob = _at_least_float32(forget.teacher_log_probs[:, forget.classes]).exp()
        nll = level - log_probs
        return _per_expected(teacher_prob, bounded_ascent(nll, self.margin))

    def _odds(self, forget: View) -> Tensor:
        """L_f of 'odds'."""
        teacher_prob = _at_least_float32(forget.teacher_log_probs[:, forget.classes]).exp().sum(-1)
        nll = -log_odds(_at_least_float32(forget.log_probs), forget.gone)
        return _per_expected(teacher_prob, bounded_ascent(nll, self.bound))

    def _background(self, teacher: Tensor, empty: Tensor, *views: View) -> Tensor:
        """How far the gone classes are from the teacher's where there is nothing, squared, B."""
        gone = views[0].gone
        now = _at_least_float32(torch.cat([view.log_probs for view in views])[:, gone])
        apart = (now - teacher[:, gone]).masked_fill(
            (now < NEGLIGIBLE) & (teacher[:, gone] < NEGLIGIBLE), 0.0
        )
        return joint_weighted_mean(apart.square().mean(-1), empty)

    def _off_centre(self, view: View) -> Tensor:
        """How far the means of the classes to forget are from the centre, squared, P."""
        self.prototypes = self.prototypes.to(view.states.device)
        centre = self.prototypes[self.prototypes.isfinite().all(-1)].mean(0)
        wanted = (centre - self.prototypes[view.classes]).nan_to_num()
        sure = view.teacher_log_probs[:, view.classes] > math.log(0.5)
        sums, counts = class_mean_shift(view.states - view.teacher_states, sure, wanted)
        sums, counts = joint_value(sums), mean_over_processes(counts)
        seen = counts > 0
        means = sums[seen] / counts[seen, None]
        return means.square().mean() if seen.any() else sums.sum()

    def _moved(self, gone: Tensor, *views: View) -> Tensor:
        """How far predictions of other classes are from where the teacher has them, squared, H."""
        moves = torch.cat([view.states - view.teacher_states for view in views])
        teacher_prob = torch.cat([view.teacher_log_probs for view in views]).exp()
        teacher_prob[:, gone] = 0
        return joint_weighted_mean(moves.square().mean(-1), teacher_prob.max(-1).values)


def _teacher(*views: View) -> tuple[Tensor, Tensor]:
    """The teacher's log-probabilities (m, C) of all views, and (m,) that nothing is there."""
    log_probs = _at_least_float32(torch.cat([view.teacher_log_probs for view in views]))
    return log_probs, 1 - log_probs.max(-1).values.exp()


def _per_expected(teacher_prob: Tensor, values: Tensor) -> Tensor:
    """Sum of values weighted by the teacher's probability, per object that it expects."""
    # The joint sum is clamped at 1, so the mean over processes at their share of that.
    total = mean_over_processes(teacher_prob.sum()).clamp(min=1 / get_world_size())
    return (teacher_prob * values).sum() / total


def log_odds(log_probs: Tensor, classes: Tensor) -> Tensor:
    """(m,) log-odds of these classes together against all others, of (m, C) log-probabilities."""
    ours = torch.zeros(log_probs.shape[1], dtype=torch.bool, device=log_probs.device)
    ours[classes] = True
    return log_probs[:, ours].logsumexp(-1) - log_probs[:, ~ours].logsumexp(-1)


def _at_least_float32(values: Tensor) -> Tensor:
    # Sums over all predictions lose their last terms in the half precision of autocast.
    return values.to(torch.promote_types(values.dtype, torch.float32))
