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


@MODELS.register_module()
class GuidedGSLoRA(Method):
    r"""Group sparse LoRA guided by the teacher, the model at the start of the task (ours).

    .. math:: L = \beta\, L_f + L_r + \lambda\, (D_f + D_r) + w_p\, P + w_h\, H

    :math:`L_r` is the task loss of the retain view, :math:`D` the distance of each view's outputs
    from the teacher's in everything but the classes to forget (``View.drift``). Let
    :math:`\hat p_{qc}` be the teacher's probability of class c in prediction q.

    - :math:`L_f` with ``forget_loss='predictions'``, for sigmoid heads:
      :math:`\sum_{q,\,c \in forget} \hat p_{qc}\,
      \mathrm{ReLU}(BND + \log p_{qc}) / \sum \hat p_{qc}`,
      a hinge on every prediction and every class to forget. No query is left that could name the
      class, whichever it is matched to; scores of other classes are not raised or lowered, and
      predictions that never meant the class stay where they are.
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
        forget_loss: 'predictions' (sigmoid heads) or 'odds' (softmax heads). Defaults to
            'predictions'.
        bound: BND, in nats. Defaults to 9.
        beta: Weight of the forget term, one number or one per task (the last one serves all
            further tasks). Defaults to 0.2.
        distill_weight: :math:`\lambda`. Defaults to 1.
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
        bound: float = 9.0,
        beta: float | Sequence[float] = 0.2,
        distill_weight: float = 1.0,
        prototype_weight: float | Sequence[float] = 2.0,
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
        self.bound = number('bound', bound)
        self.betas = per_task('beta', beta)
        self.distill_weight = number('distill_weight', distill_weight)
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
        losses['forget_loss_cls'] = self.beta * self._hinge(forget)
        if self.distill_weight:
            losses['forget_loss_drift'] = self.distill_weight * forget.drift
            losses['retain_loss_drift'] = self.distill_weight * retain.drift
        if self.prototype_weight:
            losses['forget_loss_prototype'] = self.prototype_weight * self._off_centre(forget)
        if self.feature_distill_weight:
            moved = self._moved(forget.classes, forget, retain)
            losses['retain_loss_prototype'] = self.feature_distill_weight * moved
        return losses

    def _hinge(self, view: View) -> Tensor:
        """The forget term, L_f."""
        log_probs = _at_least_float32(view.log_probs)
        teacher_prob = _at_least_float32(view.teacher_log_probs[:, view.classes]).exp()
        if self.forget_loss == 'odds':
            nll, teacher_prob = -log_odds(log_probs, view.gone), teacher_prob.sum(-1)
        else:
            nll = -log_probs[:, view.classes]
        # The joint sum is clamped at 1, so the mean over processes at their share of that.
        total = mean_over_processes(teacher_prob.sum()).clamp(min=1 / get_world_size())
        return (teacher_prob * bounded_ascent(nll, self.bound)).sum() / total

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


def log_odds(log_probs: Tensor, classes: Tensor) -> Tensor:
    """(m,) log-odds of these classes together against all others, of (m, C) log-probabilities."""
    ours = torch.zeros(log_probs.shape[1], dtype=torch.bool, device=log_probs.device)
    ours[classes] = True
    return log_probs[:, ours].logsumexp(-1) - log_probs[:, ~ours].logsumexp(-1)


def _at_least_float32(values: Tensor) -> Tensor:
    # Sums over all predictions lose their last terms in the half precision of autocast.
    return values.to(torch.promote_types(values.dtype, torch.float32))
