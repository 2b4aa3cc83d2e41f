"""Heads: from the embedding of an image to one logit per class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmgslora.errors import ForgettingError

SEALED_LOGIT = -1e4
"""Logit of a sealed class: a score of exactly 0 in float32, finite losses, and float16 has it."""


@MODELS.register_module()
class LinearHead(nn.Module):
    """The usual last layer, ``logits = W e + b``.

    Args:
        embed_dims: D, the width of the embeddings.
        num_classes: C, the number of classes.

    Attributes:
        weight (nn.Parameter): ``W`` of shape (C, D); starts Xavier-uniform, as the authors'.
        bias (nn.Parameter): ``b`` of shape (C,); starts at zero.
    """

    def __init__(self, embed_dims: int, num_classes: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        # Not an nn.Linear: LoRA never takes the head, whatever its target is.
        self.weight = nn.Parameter(torch.empty(num_classes, embed_dims))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (n, C) of embeddings (n, D)."""
        return F.linear(embeddings, self.weight, self.bias)

    def training_logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The same: there is no margin, and ``labels`` (n,) are not read."""
        return self(embeddings)


@MODELS.register_module()
class CosineMarginHead(nn.Module):
    """Cosines with the classes' weights, with a margin while training.

    .. math:: z_c = s \\cos\\theta_c, \\qquad
        z_y = s (\\cos\\theta_y - m) \\text{ (CosFace)}, \\quad
        z_y = s \\cos(\\theta_y + m) \\text{ (ArcFace)}

    where y is the true class of a training image. ArcFace takes
    :math:`s (\\cos\\theta_y - m \\sin m)` where :math:`\\theta_y + m` is beyond :math:`\\pi`. The
    margins are pytorch-metric-learning's. There is no margin in :meth:`forward`, so that the
    class at test time is the plain arg-max of the cosines; the authors' code keeps it there.

    Args:
        embed_dims: D, the width of the embeddings.
        num_classes: C, the number of classes.
        margin_type: 'cosface' (arXiv 1801.09414) or 'arcface' (arXiv 1801.07698). Defaults to
            'cosface', as in all of the authors' scripts.
        scale: s. Defaults to 64, the authors'.
        margin: m, a difference of cosines for CosFace and an angle in radians for ArcFace.
            Defaults to the authors' 0.35 for CosFace and 0.50 for ArcFace.

    Attributes:
        weight (nn.Parameter): (C, D), of any length; starts Xavier-uniform, as the authors'.
        sealed (Tensor): (C,) uint8, 1 for a class that was sealed; None, and in no state dict,
            until one is.

    Raises:
        ForgettingError: ``margin_type`` is none of the two.
    """

    def __init__(
        self,
        embed_dims: int,
        num_classes: int,
        margin_type: str = 'cosface',
        scale: float = 64.0,
        margin: float | None = None,
    ) -> None:
        # Here, because it takes seconds and a detector needs none of it.
        from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss

        super().__init__()
        if margin_type == 'cosface':
            self.margin = CosFaceLoss(
                num_classes, embed_dims, margin=0.35 if margin is None else margin
            )
        elif margin_type == 'arcface':
            degrees = math.degrees(0.5 if margin is None else margin)
            self.margin = ArcFaceLoss(num_classes, embed_dims, margin=degrees)
        else:
            raise ForgettingError(
                f"margin_type is {margin_type!r}; allowed are 'cosface' and 'arcface'."
            )
        # The library's weight is (D, C), ours (C, D) as in every other head and checkpoint.
        del self.margin.W
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        self.scale = float(scale)
        self.weight = nn.Parameter(torch.empty(num_classes, embed_dims))
        nn.init.xavier_uniform_(self.weight)
        self.register_buffer('sealed', None)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scaled cosines (n, C) of embeddings (n, D)."""
        return self._without_sealed(self.scale * self._cosines(embeddings))

    def seal(self, labels: Sequence[int]) -> None:
        """Give these classes the lowest of all logits for good; see :func:`seal_layer`."""
        if self.sealed is None:
            self.sealed = self.weight.new_zeros(self.num_classes, dtype=torch.uint8)
        self.sealed[list(labels)] = 1

    def _without_sealed(self, logits: Tensor) -> Tensor:
        if self.sealed is None:
            return logits
        return logits.masked_fill(self.sealed.bool(), SEALED_LOGIT)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if f'{prefix}sealed' in state_dict:
            self.seal([])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def training_logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The same with the margin at the true classes ``labels`` (n,)."""
        cosines = self._cosines(embeddings)
        true = cosines.gather(1, labels[:, None])
        # At 1 itself ArcFace's arccosine has an infinite slope (PyTorch 2.1; newer ones take 0).
        lowered = self.margin.modify_cosine_of_target_classes(true.clamp(-1 + 1e-7, 1 - 1e-7))
        return self._without_sealed(self.scale * cosines.scatter(1, labels[:, None], lowered))

    def _cosines(self, embeddings: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        # Half precision under autocast would leave no room between 1 and the clamp above.
        return cosines.to(torch.promote_types(cosines.dtype, torch.float32))


@torch.no_grad()
def seal_layer(layer: nn.Module, labels: Sequence[int]) -> None:
    """Take from a layer that scores classes the means to name some of them (ours).

    A sealed class ranks nothing: whatever the embedding, its logit is :data:`SEALED_LOGIT` and its
    score exactly 0. For the file that one hands out; it says nothing of what was forgotten.

    Args:
        layer: Has ``weight`` (C or more, D) and ``bias``, or a ``seal`` of its own.
        labels: The classes.

    Raises:
        ForgettingError: The layer has neither.
    """
    if hasattr(layer, 'seal'):
        layer.seal(labels)
        return
    if getattr(layer, 'bias', None) is None:
        raise ForgettingError(
            f'A {type(layer).__name__} without a bias cannot be sealed; leave seal=False, or give '
            'it a method seal(labels).'
        )
    layer.weight[list(labels)] = 0
    layer.bias[list(labels)] = SEALED_LOGIT
