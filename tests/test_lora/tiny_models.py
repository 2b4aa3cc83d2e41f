"""Small models of the kinds that LoRA must find its way in."""

import copy

from torch import nn


class TorchTransformer(nn.Module):
    """PyTorch's own layers; one encoder layer and two decoder layers, 8 -> 16 -> 8."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), num_layers=1
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True), num_layers=2
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        memory = self.encoder(x)
        return self.head(self.decoder(x, memory))


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v)


class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, dim)
        )

    def forward(self, x):
        return self.net(x)


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x):
        return self.fn(self.norm(x))


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return x + self.fn(x)


class Transformer(nn.Module):
    """Blocks as bare ModuleLists, the way of vit-pytorch and of the Face Transformer."""

    def __init__(self, dim=8, hidden=32, depth=2):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Residual(PreNorm(dim, Attention(dim))),
                    Residual(PreNorm(dim, FeedForward(dim, hidden))),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x):
        for attention, feed_forward in self.layers:
            x = feed_forward(attention(x))
        return x


class ViT(nn.Module):
    """A classifier whose head is a pair of Linears outside every block."""

    def __init__(self, **kwargs):
        super().__init__()
        self.transformer = Transformer(**kwargs)
        self.mlp_head = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x):
        return self.mlp_head(self.transformer(x).mean(dim=1))


def mmdet_config(name):
    """Model config of MMDetection, changed to need no download."""
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config

    import mmgslora  # noqa: F401  stands in for the ops that mmcv-lite lacks

    register_all_modules(init_default_scope=True)
    config = copy.deepcopy(get_config(f'mmdet::{name}.py').model)
    config.get('backbone', config).init_cfg = None
    return config


def small_detr(name):
    """A DETR-like of MMDetection with two layers on each side and a thin backbone."""
    from mmdet.registry import MODELS

    config = mmdet_config(name)
    config.backbone.update(depth=18, base_channels=4)
    config.neck.in_channels = [4 * 2**stage for stage in config.backbone.out_indices]
    config.encoder.num_layers = config.decoder.num_layers = 2
    return MODELS.build(config)
