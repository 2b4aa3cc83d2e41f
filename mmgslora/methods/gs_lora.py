"""GS-LoRA: group sparse LoRA for continual forgetting (arXiv 2403.11530)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmgslora.families.view import View
from mmgslora.losses import bounded_ascent, mean_with_local_grad
from mmgslora.methods.base import METHODS, Context, Method, of_task, task_terms
from mmgslora.methods.sparsity import Sparsity
from mmgslora.settings import NonNegative, PerTask, checked


@METHODS.register_module()
class GSLoRA(Method):
    r"""The authors' GS-LoRA: forget by bounded ascent, keep by rehearsal, stay sparse by groups.

    .. math::
        L = \beta\, (\mathrm{ReLU}(BND - L_{cls}) + L_{other}) + L_r
            + \alpha \sum_g \lVert (A, B)_g \rVert_2

    :math:`L_{cls}` and :math:`L_{other}` are the classification loss and the other terms of the
    forget view, :math:`L_r` is the task loss of the retain view. One hinge sees the mean of the
    whole view; the box terms of the forgotten objects are still minimised, as in the authors'
    detection code. With several processes the hinge sees the loss of all of them. There is no
    teacher.

    Defaults are those of the authors' continual detection run of CVPR 2024; the numbers of their
    other runs are in ``configs/_base_/methods``.

    Args:
        bound: BND, in nats. Theirs: 15 for detection, 105 (continual) and 110 (single-step) for
            faces and ImageNet100. Defaults to 15.
        beta: Weight of the forget term, one number or one per task (the last one serves all
            further tasks). Defaults to their seven for COCO.
        sparsity: See :class:`~mmgslora.methods.sparsity.Sparsity`; given keys override the
            defaults, 'penalty' of weight 3e-4 by block.
        dropout: See :class:`Method`. Defaults to True.

    Raises:
        ForgettingError: A setting is unknown or not possible.
    """

    @checked
    def __init__(
        self,
        bound: NonNegative = 15.0,
        beta: PerTask = (0.015, 0.03, 0.14, 0.13, 0.13, 0.15, 0.15),
        sparsity: dict | None = None,
        dropout: bool = True,
    ) -> None:
        super().__init__(dropout)
        self.bound, self.beta = bound, beta
        self.sparsity = Sparsity.over(dict(mode='penalty', alpha=3e-4), sparsity)
        self.parts = [self.sparsity]

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        losses = {**task_terms(views['retain']), **self.sparsity.losses(context)}
        beta = of_task(self.beta, context.task)
        (name, classification), *others = task_terms(views['forget']).items()
        losses[name] = beta * bounded_ascent(mean_with_local_grad(classification), self.bound)
        losses.update({name: beta * value for name, value in others})
        return losses
