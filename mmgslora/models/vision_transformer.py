"""torchvision's VisionTransformer as a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torchvision
from mmengine.registry import MODELS
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from mmgslora.errors import ForgettingError
from mmgslora.settings import nearest

# torchvision has them in the code of its functions only; sizes of arXiv 2010.11929, table 1.
_BASE = dict(num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)
_LARGE = dict(num_layers=24, num_heads=16, hidden_dim=1024, mlp_dim=4096)
_HUGE = dict(num_layers=32, num_heads=16, hidden_dim=1280, mlp_dim=5120)
_ARCHS = {
    'vit_b_16': dict(patch_size=16, **_BASE),
    'vit_b_32': dict(patch_size=32, **_BASE),
    'vit_l_16': dict(patch_size=16, **_LARGE),
    'vit_l_32': dict(patch_size=32, **_LARGE),
    'vit_h_14': dict(patch_size=14, **_HUGE),
}


def published_weights(arch: str, weights: str) -> tuple[dict[str, Tensor], int]:
    """torchvision's weights of a VisionTransformer, with their head.

    They are downloaded once and then lie in PyTorch's hub folder.

    Args:
        arch: Such as 'vit_b_16'.
        weights: Their name in torchvision, such as 'IMAGENET1K_V1'.

    Returns:
        The state dict of torchvision's model, and the image size it was trained for.

    Raises:
        ForgettingError: torchvision has no such weights, or they cannot be downloaded.
    """
    _sizes(arch)
    entry = weights_entry(arch, weights)
    with downloading(entry):
        state = entry.get_state_dict(progress=True, check_hash=True)
    return state, entry.meta['min_size'][0]


def weights_entry(arch: str, weights: str) -> WeightsEnum:
    """torchvision's entry of published weights.

    Args:
        arch: A model of torchvision.
        weights: Their name, such as 'IMAGENET1K_V1' or 'DEFAULT'.

    Raises:
        ForgettingError: torchvision has no such weights.
    """
    entries = get_model_weights(arch).__members__
    if weights not in entries:
        raise ForgettingError(
            f'torchvision has no weights {weights!r} of {arch}{nearest(weights, entries)}.'
        )
    return entries[weights]


@contextmanager
def downloading(entry: WeightsEnum) -> Iterator[None]:
    """Within, weights are downloaded or read from PyTorch's hub folder.

    Raises:
        ForgettingError: That fails.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ForgettingError(
            f'The weights {entry} cannot be downloaded from {entry.url} ({error}); '
            'put the file into the folder hub/checkpoints of TORCH_HOME.'
        ) from error


def _sizes(arch: str) -> dict[str, int]:
    if arch not in _ARCHS:
        raise ForgettingError(f'arch is {arch!r}; allowed are {", ".join(_ARCHS)}.')
    return _ARCHS[arch]


@MODELS.register_module()
class VisionTransformer(torchvision.models.VisionTransformer):
    """From images (n, 3, H, H) to embeddings (n, D), the class token after the last LayerNorm.

    The classification head is taken off. The sizes are either those of a published ``arch`` or
    all given.

    Args:
        arch: 'vit_b_16', 'vit_b_32', 'vit_l_16', 'vit_l_32' or 'vit_h_14'. Defaults to None.
        weights: Name of torchvision's weights of this ``arch``, such as 'IMAGENET1K_V1', which
            are loaded at once and need a network the first time. Defaults to None: random.
        image_size: H, height and width of the images in pixels. Defaults to what ``weights`` were
            trained for, else 224.
        patch_size: Height and width of a patch in pixels.
        num_layers: Number of blocks.
        num_heads: Number of attention heads.
        hidden_dim: D, width of tokens and embeddings.
        mlp_dim: Inner width of the feed-forward networks.
        dropout: Of the tokens, after attention and in the feed-forward networks. Defaults to 0,
            as torchvision trained.

    Raises:
        ForgettingError: The sizes are neither those of an ``arch`` nor all given, do not fit
            together or the weights, or the weights cannot be had.
    """

    def __init__(
        self,
        arch: str | None = None,
        weights: str | None = None,
        image_size: int | None = None,
        patch_size: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        hidden_dim: int | None = None,
        mlp_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        sizes = dict(
            patch_size=patch_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            mlp_dim=mlp_dim,
        )
        given = [name for name, size in sizes.items() if size is not None]
        if arch is None and (weights is not None or len(given) < len(sizes)):
            raise ForgettingError(
                f'VisionTransformer needs an arch ({", ".join(_ARCHS)}) or, without weights, all '
                f'of {", ".join(sizes)}; it got {", ".join(given) or "no size"}'
                f'{"" if weights is None else f" and weights {weights}"}.'
            )
        if arch is not None and given:
            raise ForgettingError(f'{given[0]} is given beside arch {arch!r}, which sets it.')
        if arch is not None:
            sizes = _sizes(arch)
        state = None
        if weights is not None:
            state, trained_size = published_weights(arch, weights)
            image_size = image_size or trained_size
            if image_size != trained_size:
                raise ForgettingError(
                    f'image_size is {image_size} and the weights {weights} of {arch} are for '
                    f'{trained_size}; leave image_size out.'
                )
        image_size = image_size or 224
        try:
            super().__init__(image_size=image_size, dropout=dropout, **sizes)
        except AssertionError as error:
            raise ForgettingError(
                f'VisionTransformer cannot have image_size {image_size} with {sizes}: image_size '
                'must be a multiple of patch_size, and hidden_dim one of num_heads.'
            ) from error
        if state is not None:
            self.load_state_dict(state)
        self.heads = nn.Identity()
        self.weights = weights
