"""GS-LoRA++: GS-LoRA with prototypes (arXiv 2501.09705)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmgslora.families.view import View
from mmgslora.losses import bounded_ascent, joint_weighted_mean, prototype_divergence
from mmgslora.methods.base import METHODS, Context, of_task
from mmgslora.methods.gs_lora import GSLoRA
from mmgslora.methods.prototypes import Prototypes
from mmgslora.settings import Count, NonNegative, PerTask, checked


@METHODS.register_module()
class GSLoRAPlusPlus(GSLoRA):
    r"""The authors' GS-LoRA++: GS-LoRA that also drives embeddings off their prototypes.

    .. math:: L_{++} = L + w_f\, \mathrm{ReLU}(BND_{pro} - \bar D_f) + w_r\, \bar D_r

    :math:`\bar D` is the mean distance (:func:`~mmgslora.losses.prototype_divergence`) of the
    objects of a view from the prototype of their class. Classes without one are left out.
    Prototypes come from the original model and stay the same for all tasks
    (:class:`~mmgslora.methods.prototypes.Prototypes`); the authors' code takes them anew from the
    model at the start of each task, which in task 1 is the original.

    Defaults are those of the authors' detection script, but for ``beta``, which is that of
    :class:`GSLoRA`; their own seven are in ``configs/_base_/methods/gs_lora_pp_coco.py``.

    Args:
        prototype_weight: w_f, one number or one per task (the last one serves all further
            tasks). Defaults to 0.005.
        feature_pull_weight: w_r. Defaults to 0, as in all their active scripts.
        prototype_bound: BND_pro, in nats. Defaults to 18.
        prototypes: 'embeddings' (the mean embedding of each class over the training data) or
            'head' (its row in the classifier's weight; the authors' choice for detection).
            Defaults to 'head'.
        prototype_file: Take the prototypes from this file, made by an earlier run from the same
            model, instead of computing them. Defaults to None.
        prototype_passes: Passes over the images for mean embeddings. Defaults to 4.
        **kwargs: As for :class:`GSLoRA`.

    Raises:
        ForgettingError: See :class:`GSLoRA`.
    """

    @checked
    def __init__(
        self,
        prototype_weight: PerTask = 0.005,
        feature_pull_weight: NonNegative = 0.0,
        prototype_bound: NonNegative = 18.0,
        prototypes: Literal['embeddings', 'head'] = 'head',
        prototype_file: str | None = None,
        prototype_passes: Count = 4,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.prototype_weight = prototype_weight
        self.feature_pull_weight = feature_pull_weight
        self.prototype_bound = prototype_bound
        self.prototypes, self.prototype_file = prototypes, prototype_file
        self.prototype_passes = prototype_passes
        self._prototypes = Prototypes(prototypes, prototype_file, prototype_passes)
        self.parts = [*self.parts, self._prototypes]

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        losses = super().losses(views, context)
        weight = of_task(self.prototype_weight, context.task)
        if weight:
            hinge = bounded_ascent(self._distance(views['forget']), self.prototype_bound)
            losses['forget_loss_prototype'] = weight * hinge
        if self.feature_pull_weight:
            distance = self._distance(views['retain'])
            losses['retain_loss_prototype'] = self.feature_pull_weight * distance
        return losses

    def _distance(self, view: View) -> Tensor:
        """Mean divergence of a view's objects from their prototypes, of all processes together."""
        wanted = self._prototypes.of(view.labels)
        known = wanted.isfinite().all(-1)
        embeddings = view.now.embeddings[view.matched]
        distances = prototype_divergence(embeddings[known], wanted[known])
        return joint_weighted_mean(distances, torch.ones_like(distances))
