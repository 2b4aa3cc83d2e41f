"""A Linear layer with a low-rank adapter that can be merged into its weight."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgslora.errors import ForgettingError


class LoRALinear(nn.Linear):
    """A frozen Linear plus a trainable low-rank update (LoRA, arXiv 2106.09685).

    .. math:: y = W x + b + s B A x, \\qquad s = \\text{lora\\_alpha} / \\text{rank}

    ``A`` starts Kaiming-uniform with ``a = sqrt(5)``, that is uniform in
    ``(-1 / sqrt(in), 1 / sqrt(in))``, and ``B`` starts at zero: a fresh adapter changes
    nothing. ``init='xavier'`` makes the first task's adapter another one, see :meth:`reset`. The
    layer is an ``nn.Linear`` and keeps the names ``weight`` and ``bias``, so
    the state dict of the plain model fits. Evaluation never changes a weight; only
    :meth:`merge` does.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias. Defaults to True.
        rank: Rows of ``A`` and columns of ``B``, 1 to min(in_features, out_features): a
            larger one costs parameters and can express nothing more. Defaults to 8, the
            rank of the GS-LoRA paper, as is ``lora_alpha``.
        lora_alpha: Positive numerator of the scale. Defaults to 1.
        device: Device of all parameters. Defaults to PyTorch's.
        dtype: Dtype of all parameters. Defaults to PyTorch's.
        init: 'kaiming' or 'xavier', see :meth:`reset`. Defaults to 'kaiming'.

    Attributes:
        lora_A (nn.Parameter): ``A``, of shape (rank, in_features).
        lora_B (nn.Parameter): ``B``, of shape (out_features, rank).
        enabled (bool): Whether the forward pass adds the adapter.

    Raises:
        ForgettingError: If ``rank`` or ``lora_alpha`` is out of range, or ``init`` is unknown.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        rank: int = 8,
        lora_alpha: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        init: str = 'kaiming',
    ) -> None:
        widest = min(in_features, out_features)
        if not isinstance(rank, int) or not 1 <= rank <= widest:
            raise ForgettingError(
                f'rank {rank!r} is not possible for a Linear of {in_features} inputs and '
                f'{out_features} outputs; allowed are the whole numbers 1 to {widest}.'
            )
        if not isinstance(lora_alpha, (int, float)) or not 0 < lora_alpha < math.inf:
            raise ForgettingError(
                f'lora_alpha {lora_alpha!r} is not possible; allowed are the numbers above 0.'
            )
        if init not in ('kaiming', 'xavier'):
            raise ForgettingError(f'init is {init!r}; it can be kaiming or xavier.')
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.requires_grad_(False)
        self.rank = rank
        self.lora_alpha = lora_alpha
        self.init = init
        self.enabled = True
        self._add_adapter(self.weight)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, rank: int = 8, lora_alpha: float = 1.0, init: str = 'kaiming'
    ) -> LoRALinear:
        """Build the layer around an existing Linear.

        The Parameter objects ``weight`` and ``bias`` are shared, not copied, and are frozen;
        the adapter gets their device and dtype.

        Args:
            linear: Any ``nn.Linear`` that owns its weight.
            rank: See the class. Defaults to 8.
            lora_alpha: See the class. Defaults to 1.
            init: See the class. Defaults to 'kaiming'.

        Raises:
            ForgettingError: If a setting is out of range or unknown, or if the weight is
                computed by a parametrization: merging has then nothing to write to.
        """
        if linear._parameters.get('weight') is None:
            raise ForgettingError(
                f'The weight of this {type(linear).__name__} is computed, not stored; remove its '
                'parametrization (weight norm, spectral norm) before LoRA is added.'
            )
        # The meta device allocates and draws nothing: all parameters are replaced below.
        has_bias = linear.bias is not None
        layer = cls(
            linear.in_features,
            linear.out_features,
            has_bias,
            rank,
            lora_alpha,
            device='meta',
            init=init,
        )
        layer.weight, layer.bias = linear.weight, linear.bias
        for parameter in linear.parameters(recurse=False):
            parameter.requires_grad_(False)
        layer._add_adapter(linear.weight)
        return layer.train(linear.training)

    def _add_adapter(self, like: Tensor) -> None:
        self.lora_A = nn.Parameter(like.new_empty(self.rank, self.in_features))
        self.lora_B = nn.Parameter(like.new_empty(self.out_features, self.rank))
        self.reset()

    @property
    def scale(self) -> float:
        """lora_alpha / rank, the factor in front of B A."""
        return self.lora_alpha / self.rank

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (..., in_features) to (..., out_features)."""
        output = super().forward(input)
        if self.enabled:
            # Scaled where it is narrowest.
            output = output + F.linear(self.scale * F.linear(input, self.lora_A), self.lora_B)
        return output

    def delta(self) -> Tensor:
        """Return s B A of shape (out_features, in_features), with its graph."""
        return self.scale * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None, first: bool = False) -> None:
        """Start a fresh adapter: ``B`` is zero, ``A`` is drawn anew.

        With ``init='xavier'`` the adapter of the first task has Xavier-uniform ``A`` and ``B``, as
        the authors' detection code leaves them, and is not nothing: s B A has about 3.4 % of the
        norm of a Xavier-uniform weight at rank 8. Later ones are as above.

        ``A`` is drawn in float32 on the device of the generator (the CPU without one), so a
        seed gives the same adapter on every device and in every dtype.

        Args:
            generator: Source of the random numbers. Defaults to PyTorch's global CPU one.
            first: Whether this is the adapter of the first task. Defaults to False.
        """
        device = 'cpu' if generator is None else generator.device

        def draw(matrix: Tensor, bound: float) -> None:
            drawn = torch.empty(matrix.shape, device=device, dtype=torch.float32)
            matrix.copy_(drawn.uniform_(-bound, bound, generator=generator))

        if first and self.init == 'xavier':
            for matrix in (self.lora_A, self.lora_B):
                draw(matrix, math.sqrt(6 / sum(matrix.shape)))
        else:
            draw(self.lora_A, 1 / math.sqrt(self.in_features))
            self.lora_B.zero_()

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return W + s B A, summed in float64 and cast to the dtype of the weight.

        Returns:
            Tensor: New tensor of shape (out_features, in_features).

        Raises:
            ForgettingError: If it holds NaN or infinity.
        """
        return merged_weight(self.weight, self.lora_A, self.lora_B, self.scale)

    @torch.no_grad()
    def merge(self, generator: torch.Generator | None = None) -> None:
        """Add the adapter to the weight for good and start a fresh one.

        With ``enabled`` the output is the same before and after, up to rounding.

        Args:
            generator: Source of the fresh ``A``, see :meth:`reset`. Defaults to None.

        Raises:
            ForgettingError: If the sum holds NaN or infinity; nothing is changed then.
        """
        self.weight.copy_(self.merged_weight())
        self.reset(generator)

    def extra_repr(self) -> str:
        """Add rank and lora_alpha to what ``print(model)`` shows."""
        return f'{super().extra_repr()}, rank={self.rank}, lora_alpha={self.lora_alpha}'


@torch.no_grad()
def merged_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """W + scale B A, summed in float64 and cast to the dtype of W.

    Args:
        weight: W (out, in).
        lora_A: A (rank, in).
        lora_B: B (out, rank).
        scale: lora_alpha / rank.

    Raises:
        ForgettingError: If the sum holds NaN or infinity.
    """
    # A product of two float32 is exact in float64 and the sum has one order, so that every machine
    # gets the same bits: a merged model is known by its hash. A matrix product has any order.
    update = torch.zeros_like(weight, dtype=torch.float64)
    for column, row in zip(lora_B.T.double(), lora_A.double()):
        update += torch.outer(column, row)
    merged = (weight.double() + scale * update).to(weight.dtype)
    if not torch.isfinite(merged).all():
        raise ForgettingError(
            'Merging would put NaN or infinity into the weight; lower the learning rate, '
            'or clip the gradient, and train the adapter again.'
        )
    return merged
