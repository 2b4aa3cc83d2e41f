"""SalUn: random labels, on the weights that matter for what must go (Fan et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.runner import set_random_seed
from torch import Tensor

from mmgslora.families.view import View
from mmgslora.methods.base import METHODS, Context, Method, task_terms
from mmgslora.settings import NonNegative, PositiveShare, checked


@METHODS.register_module()
class SalUn(Method):
    r"""Saliency unlearning (arXiv 2310.12508): a mask of weights, and random labels.

    Before a task the gradient of the forget view's classification loss is summed over one pass;
    the share ``saliency`` of the parameters where it is largest may change, all others keep their
    values (their eq. 3, where the threshold is the median), and so does whatever has a gradient of
    exactly 0, though the share had room for it. Then

    .. math:: L = \alpha\, L_f(\text{other labels}) + L_r

    Images are relabelled as their random labelling does it: everything that is to be forgotten in
    an image gets a random class that stays, drawn anew for each step.

    Args:
        saliency: Share of the parameters that may change. Defaults to 0.5, theirs.
        alpha: Weight of the relabelled view. Defaults to 1.
        dropout: See :class:`Method`. Defaults to True, as in training.
    """

    tune = dict(type='Full')

    @checked
    def __init__(
        self, saliency: PositiveShare = 0.5, alpha: NonNegative = 1.0, dropout: bool = True
    ) -> None:
        super().__init__(dropout)
        self.saliency, self.alpha = saliency, alpha
        self._masks: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def before_task(self, context: Context) -> None:
        trained = _trained(context)
        sums = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
        context.model.eval()
        # The pipeline's variations: a run resumed between two tasks finds the same mask.
        set_random_seed(context.seed, diff_rank_seed=True)
        for views in context.views(sides=['forget']):
            classification = next(iter(views['forget'].terms.values()))
            found = torch.autograd.grad(classification, trained.values(), allow_unused=True)
            for total, gradient in zip(sums.values(), found):
                if gradient is not None:
                    total += gradient
        for total in sums.values():
            all_reduce(total)
        sizes = torch.cat([total.abs().flatten() for total in sums.values()])
        count = max(1, int(self.saliency * len(sizes)))
        threshold = sizes.kthvalue(len(sizes) - count + 1).values
        self._masks = {n: (x.abs() >= threshold) & (x != 0) for n, x in sums.items()}
        self._start = {name: p.detach().clone() for name, p in trained.items()}

    def prepare(self, samples: list, context: Context) -> list:
        return [
            sample
            if sample.metainfo['view'] == 'retain'
            else context.model.relabelled(sample, partial(_other_labels, context))
            for sample in samples
        ]

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        forget = {name: self.alpha * value for name, value in task_terms(views['forget']).items()}
        return {**task_terms(views['retain']), **forget}

    def before_step(self, context: Context) -> None:
        for name, parameter in _trained(context).items():
            if parameter.grad is not None:
                parameter.grad.mul_(self._masks[name])

    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        # Weight decay moves what has no gradient.
        for name, parameter in _trained(context).items():
            parameter.copy_(torch.where(self._masks[name], parameter, self._start[name]))

    def state_dict(self) -> dict[str, Any]:
        return dict(masks=self._masks, start=self._start)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._masks, self._start = state.get('masks', {}), state.get('start', {})


def _other_labels(context: Context, labels: Tensor) -> Tensor:
    """For each label a random one of the classes that stay.

    The images of several processes are dealt out in turn, and so are the draws: of images with as
    many labels each gets what it gets in one process.
    """
    stays, (rank, processes) = context.task.retain, get_dist_info()
    shape = (processes, *labels.shape)
    drawn = torch.randint(len(stays), shape, generator=context.generator)[rank]
    return stays[drawn.to(stays.device)].to(labels)


def _trained(context: Context) -> dict[str, Tensor]:
    named = context.model.plain_model.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}
