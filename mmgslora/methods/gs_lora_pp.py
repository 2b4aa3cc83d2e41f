"""GS-LoRA++: GS-LoRA with prototypes (arXiv 2501.09705)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from mmengine.registry import MODELS
from torch import Tensor

from mmgslora.losses import bounded_ascent, joint_weighted_mean, prototype_divergence
from mmgslora.methods.base import check_choice, number, per_task
from mmgslora.methods.gs_lora import GSLoRA

if TYPE_CHECKING:
    from mmgslora.families.view import View


@MODELS.register_module()
class GSLoRAPlusPlus(GSLoRA):
    r"""The authors' GS-LoRA++: GS-LoRA that also drives embeddings off their prototypes.

    .. math:: L_{++} = L + w_f\, \mathrm{ReLU}(BND_{pro} - \bar D_f) + w_r\, \bar D_r

    :math:`\bar D` is the mean distance (:func:`~mmgslora.losses.prototype_divergence`) of the
    objects of a view from the prototype of their class. Classes without one are left out.
    Prototypes come from the original model and stay the same for all tasks
    (:class:`~mmgslora.engine.PrototypeHook`); the authors' code takes them anew from the model at
    the start of each task, which in task 1 is the original.

    Defaults are those of the authors' detection script.

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
        **kwargs: As for :class:`GSLoRA`.

    Raises:
        ForgettingError: ``prototypes`` is neither, or see :class:`GSLoRA`.
    """

    def __init__(
        self,
        prototype_weight: float | Sequence[float] = 0.005,
        feature_pull_weight: float = 0.0,
        prototype_bound: float = 18.0,
        prototypes: str = 'head',
        prototype_file: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        check_choice('prototypes', prototypes, ('embeddings', 'head'))
        self.prototype_weights = per_task('prototype_weight', prototype_weight)
        self.feature_pull_weight = number('feature_pull_weight', feature_pull_weight)
        self.prototype_bound = number('prototype_bound', prototype_bound)
        self.prototype_source = prototypes
        self.prototype_file = prototype_file

    @property
    def prototype_weight(self) -> float:
        """w_f in the task of the moment."""
        return self.of_task(self.prototype_weights)

    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """See :class:`Method`."""
        losses = super().losses(forget, retain)
        if self.prototype_weight:
            hinge = bounded_ascent(self._distance(forget), self.prototype_bound)
            losses['forget_loss_prototype'] = self.prototype_weight * hinge
        if self.feature_pull_weight:
            losses['retain_loss_prototype'] = self.feature_pull_weight * self._distance(retain)
        return losses

    def _distance(self, view: View) -> Tensor:
        """Mean divergence of a view's objects from their prototypes, of all processes together."""
        self.prototypes = self.prototypes.to(view.embeddings.device)
        wanted = self.prototypes[view.labels]
        known = wanted.isfinite().all(-1)
        distances = prototype_divergence(view.embeddings[known], wanted[known])
        return joint_weighted_mean(distances, torch.ones_like(distances))
