"""An attention module with a low-rank adapter on its packed projection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.lora.adapter import Adapter, check_settings


class LoRAMultiheadAttention(Adapter, nn.MultiheadAttention):
    """A frozen ``nn.MultiheadAttention`` plus a low-rank update of its ``in_proj_weight``.

    That matrix (3 D, D) projects queries, keys and values; the update s B A has one ``A`` (r, D)
    for all three, as PEFT's. The module never takes PyTorch's fused path, which would read the
    weight alone.
    """

    weight_name = 'in_proj_weight'

    @classmethod
    def from_attention(
        cls,
        attention: nn.MultiheadAttention,
        rank: int = 8,
        lora_alpha: float = 1.0,
        init: str = 'kaiming',
    ) -> LoRAMultiheadAttention:
        """Turn an existing module into one with an adapter; its parameters are frozen.

        Args:
            attention: The module. It is this very object that gets the adapter.
            rank: Rank of the adapter. Defaults to 8.
            lora_alpha: Numerator of the scale. Defaults to 1.
            init: See :meth:`reset`. Defaults to 'kaiming'.

        Raises:
            ForgettingError: See :func:`check_attention`.
        """
        check_attention(attention, rank, lora_alpha, init)
        attention.__class__ = cls
        attention._add_adapter(rank, lora_alpha, init, attention.in_proj_weight)
        return attention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``."""
        weight = self.in_proj_weight
        if self.learns:
            self.called = True
            weight = weight + self.delta()
        turned = self.batch_first and query.dim() == 3
        if turned:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        output, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (output.transpose(0, 1) if turned else output), weights


def check_attention(
    attention: nn.MultiheadAttention, rank: object, lora_alpha: object, init: object
) -> None:
    """Refuse an adapter that a module cannot have.

    Raises:
        ForgettingError: A setting is not possible, or keys or values have a width of their own, so
            that there is no packed matrix.
    """
    weight = attention._parameters.get('in_proj_weight')
    if weight is None:
        raise ForgettingError(
            'This nn.MultiheadAttention has keys or values of another width than its queries, '
            "and so no packed projection for LoRA; choose layers='ffn' or a target."
        )
    check_settings(rank, lora_alpha, init, *weight.shape)
