"""NegGrad+: ascend on what must go, descend on what must stay (Kurmanji et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmgslora.families.view import View
from mmgslora.losses.bounded_ascent import bounded_ascent
from mmgslora.losses.over_processes import mean_with_local_grad
from mmgslora.methods.base import METHODS, Context, Method, of_task, task_terms
from mmgslora.settings import NonNegative, SharePerTask, checked


@METHODS.register_module()
class NegGradPlus(Method):
    r"""NegGrad+, the baseline of SCRUB's paper (arXiv 2302.09880, section 4).

    .. math:: L = (1 - \beta)\, L_r - \beta\, L_f

    on all parameters. The loss to ascend is bounded, as in GS-LoRA (ours): without a bound it
    diverges within few steps, with a bound that is never reached the gradient is theirs.

    Args:
        beta: Weight of the ascent, 0 to 1, one number or one per task. Theirs is 1 - 0.9999 for
            small sets to forget and 1 - 0.95 for classes. Defaults to 0.05.
        bound: Where ascent stops, in units of the classification loss. Defaults to 15.
        dropout: See :class:`Method`. Defaults to True, as in training.
    """

    tune = dict(type='Full')

    @checked
    def __init__(
        self, beta: SharePerTask = 0.05, bound: NonNegative = 15.0, dropout: bool = True
    ) -> None:
        super().__init__(dropout)
        self.beta, self.bound = beta, bound

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`; of the forget view the classification alone is ascended."""
        beta = of_task(self.beta, context.task)
        losses = {name: (1 - beta) * value for name, value in task_terms(views['retain']).items()}
        name, classification = next(iter(task_terms(views['forget']).items()))
        losses[name] = beta * bounded_ascent(mean_with_local_grad(classification), self.bound)
        return losses
