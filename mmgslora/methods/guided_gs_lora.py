"""Guided GS-LoRA: what is forgotten and what is held is said by the teacher (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmgslora.families.view import Outputs, View, expected
from mmgslora.losses import bounded_ascent, joint_weighted_mean, mean_over_processes
from mmgslora.methods.base import METHODS, Context, Method, Task, of_task
from mmgslora.methods.sparsity import Sparsity
from mmgslora.settings import NonNegative, PerTask, checked

NEGLIGIBLE = -9.0
"""A log-probability under which no class is looked for any more, in nats (ours)."""


@METHODS.register_module()
class GuidedGSLoRA(Method):
    r"""Group sparse LoRA guided by a teacher, for detectors the model before the first task (ours).

    .. math:: L = \beta\, L_f + \lambda\, (D_f + D_r) + w_b\, B

    :math:`D` is the distance of each view's outputs from the teacher's in everything but the
    classes that must be gone (:meth:`~mmgslora.families.view.Outputs.divergence`): the labels of
    what stays are not used. For 'predictions' the teacher is the same in all tasks, so that what a
    task costs of what stays does not add up with that of the next, which mends it instead. For
    'odds' it is the model at the start of the task, and just the classes to forget now are left
    out: an image has one class, those of earlier tasks never come again, and only that model knows
    that they are gone. Let :math:`\hat p_{qc}` be the teacher's probability of
    class c in prediction q, and :math:`\hat b_q = 1 - \max_c \hat p_{qc}` that of nothing being
    there.

    - :math:`L_f` with ``forget_loss='predictions'``, for detectors:
      :math:`k^{-1/2} \sum_{c\,gone} \sum_q w_{qc}\,
      \mathrm{ReLU}(\log p_{qc} - \ell_c + m) / \sum_q w_{qc}`,
      a hinge on every prediction of both views (an image of what stays may show what goes as well)
      and each class that must be gone, those of earlier tasks too: where the hinge is, they cost
      nothing. Each weighs the same, however rare it is; the gradients of the k classes to forget
      now, which have little in common, add up to the root of k times one, whence the
      factor. :math:`w_{qc}` is 1 where q is matched to an object of class c, and
      :math:`\hat p_{qc}^2` elsewhere;
      squared, the many predictions that hold a class for one in a hundred do not add up to an
      object. :math:`\ell_c = \sum_q \hat b_q \log \hat p_{qc} / \sum_q \hat b_q` is the
      log-probability that the teacher gives the class where there is nothing: an object must rank
      below that by the margin m, for AP is a ranking, and further down nothing is gained. No query
      is left that could name the class, and predictions that never meant the class stay where they
      are.
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

    Every normaliser counts the predictions of all processes, so that the mean gradient over the
    processes is that of the joint batch.

    Args:
        forget_loss: 'predictions' (detectors) or 'odds' (classifiers). Defaults to 'predictions'.
        margin: m, in nats; 'predictions' only. Defaults to 3.
        bound: BND, in nats; 'odds' only. Defaults to 9.
        beta: Weight of the forget term, one number or one per task (the last one serves all
            further tasks). Defaults to 0.4.
        distill_weight: :math:`\lambda`. Defaults to 10.
        background_weight: :math:`w_b`. Defaults to 0.2.
        sparsity: See :class:`~mmgslora.methods.sparsity.Sparsity`; given keys override the
            defaults, 'proximal' of weight 0.25 by block, selecting in the first third of a task.
        dropout: See :class:`Method`. Defaults to False.

    Raises:
        ForgettingError: A setting is unknown or not possible.
    """

    teachers = ('original',)

    @checked
    def __init__(
        self,
        forget_loss: Literal['predictions', 'odds'] = 'predictions',
        margin: NonNegative = 3.0,
        bound: NonNegative = 9.0,
        beta: PerTask = 0.4,
        distill_weight: NonNegative = 10.0,
        background_weight: NonNegative = 0.2,
        sparsity: dict | None = None,
        dropout: bool = False,
    ) -> None:
        super().__init__(dropout)
        self.forget_loss = forget_loss
        self.margin, self.bound, self.beta = margin, bound, beta
        self.distill_weight, self.background_weight = distill_weight, background_weight
        defaults = dict(mode='proximal', alpha=0.25, select=1 / 3)
        self.sparsity = Sparsity.over(defaults, sparsity)
        self.parts = [self.sparsity]
        if forget_loss == 'odds':
            self.teachers = ('task_start',)
        else:
            # At the papers' scale of 1/8: one block has to spare what looks like what goes.
            self.tune = dict(type='LoRA', rank=16, lora_alpha=2.0)

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        forget, retain, task = views['forget'], views['retain'], context.task
        losses = self.sparsity.losses(context)
        (name,) = self.teachers
        unasked = task.forget if name == 'task_start' else task.must_be_gone
        now = Outputs.joined(forget.now, retain.now).class_log_probs
        before = Outputs.joined(forget.teachers[name], retain.teachers[name])
        teacher = before.class_log_probs
        empty = 1 - teacher.max(-1).values.exp()
        if self.forget_loss == 'odds':
            hinge = self._odds(forget, task)
        else:
            hinge = self._hinge(now, teacher, empty, forget, task)
        losses['forget_loss_cls'] = of_task(self.beta, task) * hinge
        if self.distill_weight:
            for side, view in views.items():
                drift = view.now.divergence(view.teachers[name], without=unasked)
                losses[f'{side}_loss_drift'] = self.distill_weight * drift
        if self.background_weight:
            moved = self._background(now, teacher, empty, task)
            losses['loss_background'] = self.background_weight * moved
        return losses

    def _hinge(
        self, now: Tensor, teacher: Tensor, empty: Tensor, forget: View, task: Task
    ) -> Tensor:
        """L_f of 'predictions', of both views, the forget view first."""
        gone = task.must_be_gone
        now, teacher = now[:, gone], teacher[:, gone]
        empty_sum = mean_over_processes(empty.sum()).clamp(min=1e-9)
        # Not a product of matrices: autocast would take that in half precision, up to 65504.
        level = mean_over_processes((empty[:, None] * teacher).sum(0)) / empty_sum
        true = torch.zeros_like(teacher)
        true[forget.matched] = (forget.labels[:, None] == gone).to(true)
        weights = teacher.exp().square().maximum(true)
        hinge = bounded_ascent(level - now, self.margin)
        by_class = (weights * hinge).sum(0) / expected(weights)
        return by_class.sum() / len(task.forget) ** 0.5

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
