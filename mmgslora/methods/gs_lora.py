"""GS-LoRA: group sparse LoRA for continual forgetting (arXiv 2403.11530)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.families.view import View
from mmgslora.losses import bounded_ascent, group_penalty, joint_value, mean_over_processes
from mmgslora.methods.base import Method

# What the authors' scripts have in common; then those for detection, and for faces and ImageNet100.
_PAPER = dict(ascend='loss', drift=0.0, dropout=True, reset_rows=False)
_DETECTION = dict(mode='penalty', alpha=3e-4, by='block', warmup_epochs=0)
_IMAGES = dict(mode='penalty', alpha=1e-4, by='block', warmup_epochs=0)
RECIPES = {
    'paper': dict(
        _PAPER,
        bound=15.0,
        beta=(0.015, 0.03, 0.14, 0.13, 0.13, 0.15, 0.15),  # of the CVPR runs
        sparsity=_DETECTION,
    ),
    'paper_face': dict(_PAPER, bound=105.0, beta=(0.2, 0.25, 0.25, 0.2), sparsity=_IMAGES),
    'paper_face_few_shot': dict(_PAPER, bound=105.0, beta=(0.3, 0.4, 0.28, 0.2), sparsity=_IMAGES),
    'paper_imagenet': dict(_PAPER, bound=105.0, beta=(0.2, 0.25, 0.25, 0.25), sparsity=_IMAGES),
    'default': dict(
        ascend='predictions',
        bound=9.0,
        beta=0.2,
        drift=1.0,
        sparsity=dict(mode='proximal', alpha=0.3, by='block', warmup_epochs=0, select=1 / 3),
        dropout=False,
        reset_rows=False,
    ),
}


@MODELS.register_module()
class GSLoRA(Method):
    r"""Forget by bounded ascent, keep by rehearsal, stay sparse by groups.

    .. math::
        L = \beta\, L_f + L_r + \lambda\, D + \alpha \sum_g \lVert (A, B)_g \rVert_2

    :math:`L_r` is the task loss of the retain view and :math:`D` the drift of both views from
    the adapter-free model (0 in the papers). The forget term is one of

    - ``ascend='loss'``, the papers': :math:`\mathrm{ReLU}(BND - L_{cls}) + L_{other}`, one hinge
      on the classification loss of the whole forget view; the box terms of the forgotten objects
      are still minimised, as in the authors' detection code.
    - ``ascend='predictions'``, ours: :math:`\sum_{q,\,c \in forget} \hat p_{qc}\,
      \mathrm{ReLU}(BND + \log p_{qc}) / \sum \hat p_{qc}`, a hinge on every prediction and every
      class to forget, weighted by what the adapter-free model believes, :math:`\hat p`. No query
      is left that could name the class, whichever it is matched to; scores of other classes are
      not ascended, and predictions that never meant the class stay where they are.
    - ``ascend='odds'``, ours, for models with a softmax: :math:`\sum_q \hat P_q\,
      \mathrm{ReLU}(BND + \log P_q - \log(1 - P_q)) / \sum \hat P_q`, one hinge on each prediction's
      odds of naming any class that must be gone, P, weighted by the belief in those to forget now.
      The gradient of log p, 1 - p, vanishes where the model is certain, that of the odds does not;
      and what one forgotten class loses does not go to another.

    With several processes the papers' hinge sees the classification loss of all of them and
    :math:`\sum \hat p` counts all their predictions: the mean gradient over the processes is that
    of the joint batch.

    Args:
        recipe: 'default' (ours), 'paper' (the authors' detection recipe), 'paper_face',
            'paper_face_few_shot' or 'paper_imagenet'; the other arguments override it one by one.
            Defaults to 'default'.
        ascend: See above.
        bound: BND, in nats. The papers have 15 for detection, 105 to 110 for faces.
        beta: Weight of the forget term, one number or one per task (the last one serves all
            further tasks).
        drift: Weight of the drift from the adapter-free model (ours).
        sparsity: See :class:`Method`; given keys override the recipe's.
        dropout: See :class:`Method`.
        reset_rows: See :class:`Method`; False in all recipes of GS-LoRA.

    Raises:
        ForgettingError: The recipe or ``ascend`` is unknown.
    """

    def __init__(
        self,
        recipe: str = 'default',
        ascend: str | None = None,
        bound: float | None = None,
        beta: float | Sequence[float] | None = None,
        drift: float | None = None,
        sparsity: dict | None = None,
        dropout: bool | None = None,
        reset_rows: bool | None = None,
    ) -> None:
        if recipe not in RECIPES:
            raise ForgettingError(f'Recipe {recipe!r} is unknown; there are {", ".join(RECIPES)}.')
        chosen = dict(RECIPES[recipe])
        given = dict(
            ascend=ascend,
            bound=bound,
            beta=beta,
            drift=drift,
            dropout=dropout,
            reset_rows=reset_rows,
        )
        chosen.update({key: value for key, value in given.items() if value is not None})
        chosen['sparsity'] = chosen['sparsity'] | (sparsity or {})
        super().__init__(**{key: chosen[key] for key in ('sparsity', 'dropout', 'reset_rows')})
        self.ascend, self.bound, self.drift = chosen['ascend'], chosen['bound'], chosen['drift']
        if self.ascend not in ('loss', 'predictions', 'odds'):
            raise ForgettingError(
                f'ascend is {self.ascend!r}; it can be loss, predictions or odds.'
            )
        beta = chosen['beta']
        self.betas = tuple(beta) if isinstance(beta, Sequence) else (beta,)
        self.needs_teacher = self.drift > 0 or self.ascend != 'loss'

    @property
    def beta(self) -> float:
        """The weight of the forget term in the task of the moment."""
        return self.of_task(self.betas)

    def losses(self, forget: View, retain: View) -> dict[str, Tensor]:
        """See :class:`Method`."""
        losses = {f'retain_{name}': value for name, value in retain.terms.items()}
        if self.ascend == 'loss':
            (name, classification), *others = forget.terms.items()
            # The hinge sees the loss of all processes.
            hinge = bounded_ascent(joint_value(classification), self.bound)
            losses[f'forget_{name}'] = self.beta * hinge
            losses.update({f'forget_{name}': self.beta * value for name, value in others})
        else:
            log_probs = _at_least_float32(forget.log_probs)
            belief = _at_least_float32(forget.teacher_log_probs[:, forget.classes]).exp()
            if self.ascend == 'odds':
                surprise, belief = -log_odds(log_probs, forget.gone), belief.sum(-1)
            else:
                surprise = -log_probs[:, forget.classes]
            hinge = bounded_ascent(surprise, self.bound)
            # The joint sum is clamped at 1, so the mean over processes at their share of that.
            believed = mean_over_processes(belief.sum()).clamp(min=1 / get_world_size())
            losses['forget_loss_cls'] = self.beta * (belief * hinge).sum() / believed
        if self.drift:
            losses['forget_loss_drift'] = self.drift * forget.drift
            losses['retain_loss_drift'] = self.drift * retain.drift
        if self.sparsity['mode'] == 'penalty' and self.alpha:
            losses['loss_sparsity'] = self.alpha * group_penalty(self.groups)
        return losses


def log_odds(log_probs: Tensor, classes: Tensor) -> Tensor:
    """(m,) log-odds of these classes together against all others, of (m, C) log-probabilities."""
    ours = torch.zeros(log_probs.shape[1], dtype=torch.bool, device=log_probs.device)
    ours[classes] = True
    return log_probs[:, ours].logsumexp(-1) - log_probs[:, ~ours].logsumexp(-1)


def _at_least_float32(values: Tensor) -> Tensor:
    # Sums over all predictions lose their last terms in the half precision of autocast.
    return values.to(torch.promote_types(values.dtype, torch.float32))
