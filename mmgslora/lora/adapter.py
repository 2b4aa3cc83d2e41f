"""The low-rank adapter of one weight matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmgslora.errors import ForgettingError


class Adapter(nn.Module):
    """What every layer with an adapter has: A, B and what can be done with them.

    A subclass is the plain layer as well, and keeps the names of its parameters, so the state dict
    of the plain model fits. Evaluation never changes a weight; only :meth:`merge` does.

    Attributes:
        weight_name: Name of the parameter that the adapter changes.
        lora_A (nn.Parameter): ``A``, of shape (rank, columns of the weight).
        lora_B (nn.Parameter): ``B``, of shape (rows of the weight, rank).
        rank: Rows of ``A`` and columns of ``B``.
        lora_alpha: Numerator of the scale.
        init: 'kaiming' or 'xavier', see :meth:`reset`.
        enabled: Whether the forward pass adds the adapter.
        held: Whether the adapter is kept at zero: the forward pass leaves it out, and it gets no
            gradient.
        called: Whether a forward pass has added the adapter since it was fresh.
    """

    weight_name = 'weight'
    rank: int
    lora_alpha: float
    init: str
    enabled: bool
    held: bool
    called: bool

    def _add_adapter(self, rank: int, lora_alpha: float, init: str, like: Tensor) -> None:
        """Freeze the layer and give it a fresh adapter with the device and dtype of ``like``."""
        self.requires_grad_(False)
        self.rank, self.lora_alpha, self.init = rank, lora_alpha, init
        self.enabled, self.held = True, False
        rows, columns = like.shape
        self.lora_A = nn.Parameter(like.new_empty(rank, columns))
        self.lora_B = nn.Parameter(like.new_empty(rows, rank))
        self.reset()

    @property
    def learns(self) -> bool:
        """Whether the forward pass adds the adapter, so that it learns."""
        return self.enabled and not self.held

    @property
    def adapted(self) -> nn.Parameter:
        """The weight that the adapter changes."""
        return getattr(self, self.weight_name)

    @property
    def scale(self) -> float:
        """lora_alpha / rank, the factor in front of B A."""
        return self.lora_alpha / self.rank

    def delta(self) -> Tensor:
        """Return s B A, of the shape of the weight, with its graph."""
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
        self.held = self.called = False
        device = 'cpu' if generator is None else generator.device

        def draw(matrix: Tensor, bound: float) -> None:
            drawn = torch.empty(matrix.shape, device=device, dtype=torch.float32)
            matrix.copy_(drawn.uniform_(-bound, bound, generator=generator))

        if first and self.init == 'xavier':
            for matrix in (self.lora_A, self.lora_B):
                draw(matrix, math.sqrt(6 / sum(matrix.shape)))
        else:
            draw(self.lora_A, 1 / math.sqrt(self.lora_A.shape[1]))
            self.lora_B.zero_()

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return W + s B A, summed in float64 and cast to the dtype of the weight.

        Returns:
            Tensor: New tensor.

        Raises:
            ForgettingError: If it holds NaN or infinity.
        """
        return merged_weight(self.adapted, self.lora_A, self.lora_B, self.scale)

    @torch.no_grad()
    def merge(self, generator: torch.Generator | None = None) -> None:
        """Add the adapter to the weight for good and start a fresh one.

        With ``enabled`` the output is the same before and after, up to rounding; the weight of an
        adapter that is zero is not written to.

        Args:
            generator: Source of the fresh ``A``, see :meth:`reset`. Defaults to None.

        Raises:
            ForgettingError: If the sum holds NaN or infinity; nothing is changed then.
        """
        if self.lora_B.any():
            self.adapted.copy_(self.merged_weight())
        self.reset(generator)

    def extra_repr(self) -> str:
        """Add rank and lora_alpha to what ``print(model)`` shows."""
        return f'{super().extra_repr()}, rank={self.rank}, lora_alpha={self.lora_alpha}'


def is_of_adapter(name: str) -> bool:
    """Whether an entry of a state dict is A or B of an adapter, by its last word.

    Part of a name alone is not enough: a model may have a ``flora_head``.
    """
    return name.rpartition('.')[2] in ('lora_A', 'lora_B')


def check_settings(rank: object, lora_alpha: object, init: object, rows: int, columns: int) -> None:
    """Refuse an adapter that a weight of this shape cannot have.

    Raises:
        ForgettingError: ``rank`` or ``lora_alpha`` is out of range, or ``init`` is unknown.
    """
    widest = min(rows, columns)
    if not isinstance(rank, int) or not 1 <= rank <= widest:
        raise ForgettingError(
            f'rank {rank!r} is not possible for a Linear of {columns} inputs and '
            f'{rows} outputs; allowed are the whole numbers 1 to {widest}.'
        )
    if not isinstance(lora_alpha, (int, float)) or not 0 < lora_alpha < math.inf:
        raise ForgettingError(
            f'lora_alpha {lora_alpha!r} is not possible; allowed are the numbers above 0.'
        )
    if init not in ('kaiming', 'xavier'):
        raise ForgettingError(f'init is {init!r}; it can be kaiming or xavier.')


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
