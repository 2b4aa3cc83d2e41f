"""GS-LoRA++: GS-LoRA with prototypes (arXiv 2501.09705)."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.families.view import View
from mmgslora.losses import bounded_ascent, prototype_divergence
from mmgslora.methods.gs_lora import GSLoRA, mean_over_processes

# What the journal scripts add to the settings of GS-LoRA; w_f per task where they list it.
RECIPES = {
    'paper': dict(prototypes='head', push=0.005, pull=0.0, prototype_bound=18.0),
    'paper_face': dict(prototypes='embeddings', push=0.01, pull=0.0, prototype_bound=18.0),
    'paper_face_few_shot': dict(
        prototypes='embeddings', push=(0.015, 0.06, 0.025, 0.012), pull=0.0, prototype_bound=50.0
    ),
    'paper_imagenet': dict(prototypes='embeddings', push=0.05, pull=0.0, prototype_bound=18.0),
    'default': dict(prototypes='embeddings', push=0.1, pull=1.0, prototype_bound=4.0),
}


@MODELS.register_module()
class GSLoRAPlusPlus(GSLoRA):
    r"""GS-LoRA that also pushes embeddings off their prototype, or holds them at it.

    .. math::
        L_{++} = L + w_f\, \mathrm{ReLU}(BND_{pro} - \bar D_f) + w_r\, \bar D_r

    with the mean distance :math:`\bar D` (:func:`~mmgslora.losses.prototype_divergence`) of the
    objects of each view from the prototype of their class. Prototypes come from the frozen
    original model and stay the same for all tasks (:class:`~mmgslora.engine.PrototypeHook`);
    objects of classes without one are left out. The authors' pull weight w_r is 0.

    Args:
        recipe: 'default' (ours), 'paper' (the authors' detection values), 'paper_face',
            'paper_face_few_shot' or 'paper_imagenet'; the other arguments override it one by one.
        push: w_f, one number or one per task (the last one serves all further tasks).
        pull: w_r.
        prototype_bound: BND_pro, in nats.
        prototypes: 'embeddings' (the mean embedding of each class over the training data) or
            'head' (its row in the classifier's weight; the authors' choice for detection).
        prototype_file: Take the prototypes from this file, made by an earlier run from the same
            model, instead of computing them. Defaults to None.
        **kwargs: As for :class:`GSLoRA`.

    Raises:
        ForgettingError: The recipe or ``prototypes`` is unknown.
    """

    def __init__(
        self,
        recipe: str = 'default',
        push: float | Sequence[float] | None = None,
        pull: float | None = None,
        prototype_bound: float | None = None,
        prototypes: str | None = None,
        prototype_file: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(recipe=recipe, **kwargs)
        given = dict(push=push, pull=pull, prototype_bound=prototype_bound, prototypes=prototypes)
        chosen = RECIPES[recipe] | {k: value for k, value in given.items() if value is not None}
        if chosen['prototypes'] not in ('embeddings', 'head'):
            raise ForgettingError(
                f'prototypes is {chosen["prototypes"]!r}; it can be embeddings or head.'
            )
        push = chosen['push']
        self.pushes = tuple(push) if isinstance(push, Sequence) else (push,)
        self.pull = chosen['pull']
        self.prototype_bound = chosen['prototype_bound']
        self.prototype_source = chosen['prototypes']
        self.prototype_file = prototype_file
        self.prototypes: Tensor | None = None

    @property
    def push(self) -> float:
        """w_f in the task of the moment."""
        return self.of_task(self.pushes)

    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """See :class:`Method`."""
        losses = super().losses(forget, retain)
        if self.push:
            hinge = bounded_ascent(self._distance(forget), self.prototype_bound)
            losses['forget_loss_prototype'] = self.push * hinge
        if self.pull:
            losses['retain_loss_prototype'] = self.pull * self._distance(retain)
        return losses

    def _distance(self, view: View) -> Tensor:
        """Mean distance of a view's objects from their prototypes, of all processes together."""
        self.prototypes = self.prototypes.to(view.embeddings.device)
        wanted = self.prototypes[view.labels]
        known = wanted.isfinite().all(-1)
        distances = prototype_divergence(view.embeddings[known], wanted[known])
        count = mean_over_processes(known.sum().to(distances.dtype)).clamp(min=1)
        mean = distances.sum() / count
        # The value of all processes, for the hinge to see; the gradient of this one.
        return mean - mean.detach() + mean_over_processes(mean)
