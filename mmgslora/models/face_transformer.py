"""The Face Transformer of the GS-LoRA papers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torchvision.ops import MLP

from mmgslora.errors import ForgettingError


class _SelfAttention(nn.Module):
    """Softmax attention of all tokens to all; queries, keys and values have no bias.

    Scores are divided by the square root of the width of the *tokens*, not of a head: the
    released weights were trained so.
    """

    def __init__(self, hidden_dim: int, num_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = hidden_dim**-0.5
        self.qkv = nn.Linear(hidden_dim, 3 * num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        # (n, t, 3 h d) -> three of (n, h, t, d)
        split = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class _Block(nn.Module):
    """Attention and feed-forward network, each behind a LayerNorm and beside a shortcut."""

    def __init__(
        self, hidden_dim: int, num_heads: int, head_dim: int, mlp_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.attention = _SelfAttention(hidden_dim, num_heads, head_dim, dropout)
        self.norm2 = nn.LayerNorm(hidden_dim)
        widths = [mlp_dim, hidden_dim]
        self.mlp = MLP(hidden_dim, widths, None, nn.GELU, inplace=None, dropout=dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


@MODELS.register_module()
class FaceTransformer(nn.Module):
    """ViT-P8S8: from face images (n, 3, H, H) to embeddings (n, D).

    Patches do not overlap. Their pixels are read row by row, the channels of a pixel together,
    and go through a Linear. The embedding is the class token after the last LayerNorm. Defaults
    are those of the papers' model; 12 and 18 layers are their depth study. Source: the authors'
    code, whose weights ``tools/convert_face_transformer.py`` converts.

    Args:
        image_size: H, height and width of the images in pixels. Defaults to 112.
        patch_size: Height and width of a patch in pixels. Defaults to 8.
        num_layers: Number of blocks. Defaults to 6.
        num_heads: Number of attention heads. Defaults to 8.
        hidden_dim: D, width of tokens and embeddings. Defaults to 512.
        mlp_dim: Inner width of the feed-forward networks. Defaults to 2048.
        head_dim: Width of an attention head. Defaults to 64.
        dropout: Of the tokens, after attention and in the feed-forward networks. Defaults to 0.1.

    Raises:
        ForgettingError: The image cannot be cut into whole patches.
    """

    def __init__(
        self,
        image_size: int = 112,
        patch_size: int = 8,
        num_layers: int = 6,
        num_heads: int = 8,
        hidden_dim: int = 512,
        mlp_dim: int = 2048,
        head_dim: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ForgettingError(
                f'image_size {image_size} is not a multiple of patch_size {patch_size}; '
                'FaceTransformer cuts the image into whole patches.'
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_dim = hidden_dim
        self.patch_embedding = nn.Linear(3 * patch_size**2, hidden_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, hidden_dim))
        num_tokens = (image_size // patch_size) ** 2 + 1
        self.pos_embedding = nn.Parameter(torch.randn(1, num_tokens, hidden_dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(_Block(hidden_dim, num_heads, head_dim, mlp_dim, dropout) for _ in range(num_layers))
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (n, D) of images (n, 3, H, H)."""
        patch = (-1, self.patch_size)
        # (n, 3, rows, p, columns, p) -> (n, patches, p * p * 3)
        patches = images.unflatten(3, patch).unflatten(2, patch)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        tokens = self.patch_embedding(patches)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = self.blocks(self.dropout(tokens + self.pos_embedding))
        return self.norm(tokens[:, 0])
