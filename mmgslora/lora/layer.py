"""A Linear layer with a low-rank adapter that can be merged into its weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.lora.adapter import Adapter, check_settings


class LoRALinear(Adapter, nn.Linear):
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
        check_settings(rank, lora_alpha, init, out_features, in_features)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._add_adapter(rank, lora_alpha, init, self.weight)

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
        layer._add_adapter(rank, lora_alpha, init, linear.weight)
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (..., in_features) to (..., out_features)."""
        output = super().forward(input)
        if self.learns:
            self.called = True
            # Scaled where it is narrowest.
            output = output + F.linear(self.scale * F.linear(input, self.lora_A), self.lora_B)
        return output
