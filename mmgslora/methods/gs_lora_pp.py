"""GS-LoRA++: GS-LoRA with prototypes (arXiv 2501.09705)."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.families.view import View
from mmgslora.losses import bounded_ascent, class_mean_shift, prototype_divergence
from mmgslora.methods.gs_lora import GSLoRA, mean_over_processes

# What the journal scripts add to the settings of GS-LoRA; w_f per task where they list it.
_PAPER = dict(measure='divergence', prototypes='embeddings', pull=0.0, prototype_bound=18.0)
RECIPES = {
    'paper': {**_PAPER, 'prototypes': 'head', 'push': 0.005},
    'paper_face': {**_PAPER, 'push': 0.01},
    'paper_face_few_shot': {
        **_PAPER,
        'push': (0.015, 0.06, 0.025, 0.012),
        'prototype_bound': 50.0,
    },
    'paper_imagenet': {**_PAPER, 'push': 0.05},
    'default': dict(
        measure='means', prototypes='embeddings', push=1.0, pull=0.5, prototype_bound=0.0
    ),
}


@MODELS.register_module()
class GSLoRAPlusPlus(GSLoRA):
    r"""GS-LoRA that also drives embeddings off their prototypes, and holds those that stay.

    .. math:: L_{++} = L + w_f\, P_f + w_r\, P_r

    Prototypes come from the frozen original model and stay the same for all tasks
    (:class:`~mmgslora.engine.PrototypeHook`). The two terms are measured in one of two ways:

    - ``measure='divergence'``, the papers': :math:`P_f = \mathrm{ReLU}(BND_{pro} - \bar D_f)` and
      :math:`P_r = \bar D_r`, with the mean distance :math:`\bar D`
      (:func:`~mmgslora.losses.prototype_divergence`) of the objects of each view from the prototype
      of their class. Classes without one are left out. The authors' w_r is 0.
    - ``measure='means'``, ours: every class to forget is moved, on average, by what separates its
      prototype from the centre of all prototypes, so that the classes that are gone share one mean
      embedding and a linear probe has nothing to tell them apart by; objects that stay are held
      where the teacher has them:

      .. math::
          P_f = \operatorname{mean}_{c \in forget} \tfrac1D \lVert \bar e_c -
          (\bar t_c + \bar p - p_c) \rVert^2, \qquad
          P_r = \operatorname{mean}_{i \in retain} \tfrac1D \lVert e_i - t_i \rVert^2

      with embeddings e of now and t of the teacher, and their means over the objects of a class.

    Args:
        recipe: 'default' (ours), 'paper' (the authors' detection values), 'paper_face',
            'paper_face_few_shot' or 'paper_imagenet'; the other arguments override it one by one.
        measure: See above.
        push: w_f, one number or one per task (the last one serves all further tasks).
        pull: w_r.
        prototype_bound: BND_pro, in nats; 'divergence' only.
        prototypes: 'embeddings' (the mean embedding of each class over the training data) or
            'head' (its row in the classifier's weight; the authors' choice for detection).
        prototype_file: Take the prototypes from this file, made by an earlier run from the same
            model, instead of computing them. Defaults to None.
        **kwargs: As for :class:`GSLoRA`.

    Raises:
        ForgettingError: The recipe, ``measure`` or ``prototypes`` is unknown.
    """

    def __init__(
        self,
        recipe: str = 'default',
        measure: str | None = None,
        push: float | Sequence[float] | None = None,
        pull: float | None = None,
        prototype_bound: float | None = None,
        prototypes: str | None = None,
        prototype_file: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(recipe=recipe, **kwargs)
        given = dict(
            measure=measure,
            push=push,
            pull=pull,
            prototype_bound=prototype_bound,
            prototypes=prototypes,
        )
        chosen = RECIPES[recipe] | {k: value for k, value in given.items() if value is not None}
        for name, allowed in (
            ('measure', ('divergence', 'means')),
            ('prototypes', ('embeddings', 'head')),
        ):
            if chosen[name] not in allowed:
                raise ForgettingError(
                    f'{name} is {chosen[name]!r}; it can be {" or ".join(allowed)}.'
                )
        push = chosen['push']
        self.pushes = tuple(push) if isinstance(push, Sequence) else (push,)
        self.measure, self.pull = chosen['measure'], chosen['pull']
        self.prototype_bound = chosen['prototype_bound']
        self.prototype_source = chosen['prototypes']
        self.prototype_file = prototype_file
        self.needs_teacher = self.needs_teacher or self.measure == 'means'

    @property
    def push(self) -> float:
        """w_f in the task of the moment."""
        return self.of_task(self.pushes)

    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """See :class:`Method`."""
        losses = super().losses(forget, retain)
        self.prototypes = self.prototypes.to(forget.embeddings.device)
        means = self.measure == 'means'
        if self.push:
            term = self._means_off_centre(forget) if means else self._hinge(forget)
            losses['forget_loss_prototype'] = self.push * term
        if self.pull:
            term = self._move(retain) if means else self._distance(retain)
            losses['retain_loss_prototype'] = self.pull * term
        return losses

    def _hinge(self, view: View) -> Tensor:
        return bounded_ascent(self._distance(view), self.prototype_bound)

    def _distance(self, view: View) -> Tensor:
        """Mean divergence of a view's objects from their prototypes, of all processes together."""
        wanted = self.prototypes[view.labels]
        known = wanted.isfinite().all(-1)
        return _joint_mean(prototype_divergence(view.embeddings[known], wanted[known]))

    def _means_off_centre(self, view: View) -> Tensor:
        """How far the classes' mean embeddings are from where they should be, squared."""
        known = self.prototypes.isfinite().all(-1)
        wanted = self.prototypes[known].mean(0) - self.prototypes.nan_to_num()
        moves = view.embeddings - view.teacher_embeddings
        sums, counts = class_mean_shift(moves, view.labels, wanted)
        sums = sums - sums.detach() + mean_over_processes(sums)
        counts = mean_over_processes(counts)
        present = counts > 0
        if not present.any():
            return sums.sum()
        return (sums[present] / counts[present, None]).square().mean()

    def _move(self, view: View) -> Tensor:
        """How far a view's objects are from where the teacher has them, squared."""
        return _joint_mean((view.embeddings - view.teacher_embeddings).square().mean(-1))


def _joint_mean(values: Tensor) -> Tensor:
    """Mean over the values of all processes: the value of all, the gradient of this one's."""
    count = mean_over_processes(values.new_tensor(float(len(values)))).clamp(min=1e-9)
    mean = values.sum() / count
    return mean - mean.detach() + mean_over_processes(mean)
