"""Guided GS-LoRA: what is forgotten and what is held is said by the teacher (ours)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from mmgslora.families.view import Outputs, View, expected
from mmgslora.losses import (
    bounded_ascent,
    class_mean_shift,
    joint_value,
    joint_weighted_mean,
    mean_over_processes,
)
from mmgslora.methods.base import METHODS, Context, Method, Task, of_task, task_terms
from mmgslora.methods.prototypes import Prototypes
from mmgslora.methods.sparsity import Sparsity
from mmgslora.settings import Count, NonNegative, PerTask, checked

NEGLIGIBLE = -9.0
"""A log-probability under which no class is looked for any more, in nats (ours)."""


@METHODS.register_module()
class GuidedGSLoRA(Method):
    r"""Group sparse LoRA guided by the teacher, the model at the start of the task (ours).

    .. math:: L = \beta\, L_f + w_r\, L_r + \lambda\, (D_f + D_r) + w_b\, B + w_p\, P + w_h\, H

    :math:`L_r` is the task loss of the retain view, :math:`D` the distance of each view's outputs
    from the teacher's in everything but the classes to forget
    (:meth:`~mmgslora.families.view.Outputs.divergence`). Let
    :math:`\hat p_{qc}` be the teacher's probability of class c in prediction q, and
    :math:`\hat b_q = 1 - \max_c \hat p_{qc}` that of nothing being there.

    - :math:`L_f` with ``forget_loss='predictions'``, for detectors:
      :math:`\sum_{c \in forget} \sum_q \hat p_{qc}^2\,
      \mathrm{ReLU}(\log p_{qc} - \ell_c + m) / \sum_q \hat p_{qc}^2`,
      a hinge on every prediction and every class to forget. Each class weighs the same, however
      rare it is and however many go with it; squared, the many predictions that hold a class for
      one in a hundred do not add up to an object. :math:`\ell_c = \sum_q \hat b_q \log
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
            further tasks). Defaults to 0.4.
        retain_weight: :math:`w_r`. Defaults to 1; with 0 the labels of the retain view are not
            used, only what the teacher says of its images.
        distill_weight: :math:`\lambda`. Defaults to 5.
        background_weight: :math:`w_b`. Defaults to 0.2.
        prototype_weight: :math:`w_p`, one number or one per task. Defaults to 1; with 0 no
            prototypes are computed.
        feature_distill_weight: :math:`w_h`. Defaults to 0.5.
        prototypes: 'embeddings' (the mean embedding of each class over the training data) or
            'head' (its row in the classifier's weight). Defaults to 'embeddings'.
        prototype_file: Take the prototypes from this file, made by an earlier run from the same
            model, instead of computing them. Defaults to None.
        prototype_passes: Passes over the images for mean embeddings. Defaults to 4.
        sparsity: See :class:`~mmgslora.methods.sparsity.Sparsity`; given keys override the
            defaults, 'proximal' of weight 0.3 by block, selecting in the first third of a task.
        dropout: See :class:`Method`. Defaults to False.

    Raises:
        ForgettingError: A setting is unknown or not possible.
    """

    teachers = ('task_start',)

    @checked
    def __init__(
        self,
        forget_loss: Literal['predictions', 'odds'] = 'predictions',
        margin: NonNegative = 3.0,
        bound: NonNegative = 9.0,
        beta: PerTask = 0.4,
        retain_weight: NonNegative = 1.0,
        distill_weight: NonNegative = 5.0,
        background_weight: NonNegative = 0.2,
        prototype_weight: PerTask = 1.0,
        feature_distill_weight: NonNegative = 0.5,
        prototypes: Literal['embeddings', 'head'] = 'embeddings',
        prototype_file: str | None = None,
        prototype_passes: Count = 4,
        sparsity: dict | None = None,
        dropout: bool = False,
    ) -> None:
        super().__init__(dropout)
        self.forget_loss = forget_loss
        self.margin, self.bound, self.beta = margin, bound, beta
        self.retain_weight = retain_weight
        self.distill_weight, self.background_weight = distill_weight, background_weight
        self.prototype_weight = prototype_weight
        self.feature_distill_weight = feature_distill_weight
        self.prototypes, self.prototype_file = prototypes, prototype_file
        self.prototype_passes = prototype_passes
        defaults = dict(mode='proximal', alpha=0.3, select=1 / 3)
        self.sparsity = Sparsity.over(defaults, sparsity)
        self._prototypes = Prototypes(prototypes, prototype_file, prototype_passes)
        moved = (
            any(prototype_weight) if isinstance(prototype_weight, Sequence) else prototype_weight
        )
        self.parts = [self.sparsity, *([self._prototypes] if moved else [])]

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        forget, retain, task = views['forget'], views['retain'], context.task
        losses = self.sparsity.losses(context)
        if self.retain_weight:
            terms = task_terms(retain).items()
            losses.update({name: self.retain_weight * value for name, value in terms})
        now = Outputs.joined(forget.now, retain.now)
        teacher = Outputs.joined(*(view.teachers['task_start'] for view in (forget, retain)))
        log_probs = teacher.class_log_probs
        empty = 1 - log_probs.max(-1).values.exp()
        odds = self.forget_loss == 'odds'
        hinge = self._odds(forget, task) if odds else self._hinge(forget, log_probs, empty, task)
        losses['forget_loss_cls'] = of_task(self.beta, task) * hinge
        if self.distill_weight:
            for side, view in views.items():
                drift = view.now.divergence(view.teachers['task_start'], without=task.forget)
                losses[f'{side}_loss_drift'] = self.distill_weight * drift
        if self.background_weight:
            moved = self._background(now.log_probs, log_probs, empty, task)
            losses['loss_background'] = self.background_weight * moved
        weight = of_task(self.prototype_weight, task)
        if weight:
            losses['forget_loss_prototype'] = weight * self._off_centre(forget, task)
        if self.feature_distill_weight:
            moved = self._moved(now, teacher, log_probs, task)
            losses['retain_loss_prototype'] = self.feature_distill_weight * moved
        return losses

    def _hinge(self, forget: View, teacher: Tensor, empty: Tensor, task: Task) -> Tensor:
        """L_f of 'predictions'; the teacher's values are those of both views."""
        empty_sum = mean_over_processes(empty.sum()).clamp(min=1e-9)
        level = mean_over_processes(empty @ teacher[:, task.forget]) / empty_sum
        log_probs = forget.now.log_probs[:, task.forget]
        teacher_prob = forget.teachers['task_start'].log_probs[:, task.forget].exp()
        nll = level - log_probs
        sure = teacher_prob.square()
        return ((sure * bounded_ascent(nll, self.margin)).sum(0) / expected(sure)).sum()

    def _odds(self, forget: View, task: Task) -> Tensor:
        """L_f of 'odds'."""
        teacher_prob = forget.teachers['task_start'].log_probs[:, task.forget].exp().sum(-1)
        nll = -forget.now.log_odds(task.must_be_gone)
        hinge = (teacher_prob * bounded_ascent(nll, self.bound)).sum()
        return hinge / expected(teacher_prob)

    @staticmethod
    def _background(now: Tensor, teacher: Tensor, empty: Tensor, task: Task) -> Tensor:
        """How far the gone classes are from the teacher's where there is nothing, squared, B."""
        gone = task.must_be_gone
        now, teacher = now[:, gone], teacher[:, gone]
        apart = (now - teacher).masked_fill((now < NEGLIGIBLE) & (teacher < NEGLIGIBLE), 0.0)
        return joint_weighted_mean(apart.square().mean(-1), empty)

    def _off_centre(self, view: View, task: Task) -> Tensor:
        """How far the means of the classes to forget are from the centre, squared, P."""
        prototypes = self._prototypes.of(task.forget)
        wanted = (self._prototypes.centre - prototypes).nan_to_num()
        teacher = view.teachers['task_start']
        sure = teacher.log_probs[:, task.forget] > math.log(0.5)
        sums, counts = class_mean_shift(view.now.embeddings - teacher.embeddings, sure, wanted)
        sums, counts = joint_value(sums), mean_over_processes(counts)
        seen = counts > 0
        means = sums[seen] / counts[seen, None]
        return means.square().mean() if seen.any() else sums.sum()

    @staticmethod
    def _moved(now: Outputs, teacher: Outputs, log_probs: Tensor, task: Task) -> Tensor:
        """How far predictions of other classes are from where the teacher has them, squared, H."""
        moves = now.embeddings - teacher.embeddings
        teacher_prob = log_probs.exp()
        teacher_prob[:, task.forget] = 0
        return joint_weighted_mean(moves.square().mean(-1), teacher_prob.max(-1).values)
