"""SCRUB: away from the original on what must go, back to it on what must stay."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.families.view import View
from mmgslora.losses import bounded_ascent, mean_with_local_grad
from mmgslora.methods.base import METHODS, Context, Method, task_terms
from mmgslora.settings import NonNegative, NonNegativeCount, Positive, checked


@METHODS.register_module()
class SCRUB(Method):
    r"""SCRUB (Kurmanji et al. 2023, arXiv 2302.09880, algorithm 1), on all parameters.

    The teacher is the original model. Epochs alternate, ``max_epochs`` times: one that maximises
    the divergence D of the forget view's outputs from the teacher's, one that keeps,

    .. math:: L = \gamma L_r + \alpha D_r

    after which only keeping epochs follow; so a task has twice ``max_epochs`` or more. The
    divergence to maximise is bounded (ours, see :class:`~mmgslora.methods.NegGradPlus`), and what
    earlier tasks forgot is left out of the one to keep, for the original still knows it.

    Args:
        max_epochs: Maximising epochs of a task. Defaults to 2.
        alpha: Weight of the divergence to keep. Defaults to 0.5.
        gamma: Weight of the task loss. Defaults to 0.99.
        temperature: Of both divergences. Defaults to 4.
        bound: Where maximising stops, in nats per object. Defaults to 15.
        dropout: See :class:`Method`. Defaults to True, as in training.
    """

    tune = dict(type='Full')
    teachers = ('original',)

    @checked
    def __init__(
        self,
        max_epochs: NonNegativeCount = 2,
        alpha: NonNegative = 0.5,
        gamma: NonNegative = 0.99,
        temperature: Positive = 4.0,
        bound: NonNegative = 15.0,
        dropout: bool = True,
    ) -> None:
        super().__init__(dropout)
        self.max_epochs, self.alpha, self.gamma = max_epochs, alpha, gamma
        self.temperature, self.bound = temperature, bound

    def check_epochs(self, epochs: int) -> None:
        """See :class:`Method`: no task ends away from the original on what must stay."""
        if epochs < 2 * self.max_epochs:
            raise ForgettingError(
                f'model.method.max_epochs is {self.max_epochs} and epochs_per_task is {epochs}; '
                'SCRUB keeps for an epoch after each that maximises, so max_epochs can be '
                f'{epochs // 2} at most.'
            )

    def maximises(self, context: Context) -> bool:
        """Whether this is one of the epochs on the forget view."""
        return context.epoch % 2 == 0 and context.epoch < 2 * self.max_epochs

    def sides_of(self, context: Context) -> tuple[str, ...]:
        """See :class:`Method`: one at a time."""
        return ('forget',) if self.maximises(context) else ('retain',)

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        ((side, view),) = views.items()
        task, original = context.task, view.teachers['original']
        gone = task.old if side == 'forget' else task.must_be_gone
        apart = view.now.divergence(original, without=gone, temperature=self.temperature)
        if side == 'forget':
            return dict(
                forget_loss_divergence=bounded_ascent(mean_with_local_grad(apart), self.bound)
            )
        terms = {name: self.gamma * value for name, value in task_terms(view).items()}
        return {**terms, 'retain_loss_divergence': self.alpha * apart}
