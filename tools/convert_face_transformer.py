"""Turn a checkpoint of the authors' Face Transformer into one that ImageClassifier loads.

For the ``Backbone_VIT_Epoch_*_checkpoint.pth`` of GS-LoRA's code (``ViT_face``, patches that do
not overlap), a plain state dict. Width, depth and number of classes are read off the weights. What
weights do not show is taken as in all of the authors' scripts: 8 attention heads, and a CosFace
head, unless there is a bias, which only their Softmax head has. The head of ArcFace or SFace has
the same single weight as that of CosFace and converts as well.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from convert_deformable_detr import refuse_lora, save
from mmengine.registry import MODELS
from torch import Tensor

import mmgslora.models  # noqa: F401
from mmgslora.errors import ForgettingError

NUM_HEADS = 8

# From ImageClassifier's names to the authors', every line applied in turn. In this direction a
# key that the input lacks is named as its authors named it.
RENAMES = (
    (r'^head\.', 'loss.'),
    (r'^backbone\.', ''),
    (r'^patch_embedding\.', 'patch_to_embedding.'),
    (r'^norm\.', 'mlp_head.0.'),
    (r'^blocks\.', 'transformer.layers.'),
    (r'\.norm1\.', '.0.fn.norm.'),
    (r'\.attention\.qkv\.', '.0.fn.fn.to_qkv.'),
    (r'\.attention\.out\.', '.0.fn.fn.to_out.0.'),
    (r'\.norm2\.', '.1.fn.norm.'),
    (r'\.mlp\.', '.1.fn.fn.net.'),
)


def original_name(key: str) -> str:
    """The authors' name of one of ImageClassifier's keys."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def read(path: Path) -> dict[str, Tensor]:
    """The authors' weights, read without running code that the file may hold.

    Raises:
        ForgettingError: It is missing, or is no file of nothing but named weights.
    """
    if not path.is_file():
        raise ForgettingError(f'Checkpoint {str(path)!r} does not exist.')
    try:
        weights = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint make the unpickler fail in nearly every way there is.
        raise ForgettingError(
            f'{str(path)!r} cannot be read as weights: it is cut off, is no checkpoint, or holds '
            'objects that PyTorch does not load without running code of theirs.'
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    ):
        raise ForgettingError(
            f"{str(path)!r} is no checkpoint of the authors' Face Transformer: it holds more than "
            'named weights.'
        )
    # Their forgetting runs on several GPUs save the model as DataParallel has it.
    return {name.removeprefix('module.'): weight for name, weight in weights.items()}


def convert(weights: dict[str, Tensor], image_size: int = 112) -> tuple[dict[str, Tensor], dict]:
    """ImageClassifier's state dict with the authors' weights, and its config.

    Args:
        weights: The authors' state dict.
        image_size: Height and width of the images in pixels. Defaults to 112, the authors'.

    Raises:
        ForgettingError: There is LoRA among the weights, or a weight is missing, has another
            shape, or has no place in the model.
    """
    refuse_lora(weights)
    cfg = model_config(weights, image_size)
    with torch.device('meta'):
        wanted = MODELS.build(cfg).state_dict()
    names = {key: original_name(key) for key in wanted}
    state_dict = {key: _get(weights, names[key], tuple(wanted[key].shape)) for key in wanted}
    unknown = sorted(weights.keys() - set(names.values()))
    if unknown:
        raise ForgettingError(
            f"{unknown[0]!r} has no place in the authors' ViT_face; other models cannot be "
            'converted.'
        )
    return state_dict, cfg


def model_config(weights: dict[str, Tensor], image_size: int = 112) -> dict:
    """Config of the ImageClassifier that the authors' weights fit.

    Args:
        weights: The authors' state dict.
        image_size: Height and width of the images in pixels. Defaults to 112.
    """
    hidden_dim, patch_dim = _get(weights, 'patch_to_embedding.weight', (None, None)).shape
    mlp_dim = _get(weights, 'transformer.layers.0.1.fn.fn.net.0.weight', (None, None)).shape[0]
    inner_dim = _get(weights, 'transformer.layers.0.0.fn.fn.to_out.0.weight', (None, None)).shape[1]
    num_tokens = _get(weights, 'pos_embedding', (1, None, hidden_dim)).shape[1]
    num_classes = _get(weights, 'loss.weight', (None, hidden_dim)).shape[0]
    patch_size = round((patch_dim / 3) ** 0.5)
    whole = 3 * patch_size**2 == patch_dim and image_size % patch_size == 0
    if not whole or (image_size // patch_size) ** 2 + 1 != num_tokens:
        raise ForgettingError(
            f'{num_tokens - 1} patches of {patch_dim} numbers do not tile images of {image_size} x '
            f"{image_size} pixels; the authors' ViTs_face, whose patches overlap, cannot be "
            'converted, and other image sizes need --image-size.'
        )
    if inner_dim % NUM_HEADS:
        raise ForgettingError(
            f'The attention is {inner_dim} wide, which is not a multiple of its {NUM_HEADS} heads.'
        )
    layers = {m[1] for m in map(re.compile(r'transformer\.layers\.(\d+)\.').match, weights) if m}
    backbone = dict(
        type='FaceTransformer',
        image_size=image_size,
        patch_size=patch_size,
        num_layers=len(layers),
        num_heads=NUM_HEADS,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
        head_dim=inner_dim // NUM_HEADS,
    )
    head = 'LinearHead' if 'loss.bias' in weights else 'CosineMarginHead'
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        head=dict(type=head, embed_dims=hidden_dim, num_classes=num_classes),
    )


def _get(weights: dict[str, Tensor], name: str, shape: tuple[int | None, ...]) -> Tensor:
    """A weight of the shape that is wanted; None stands for any size."""
    if name not in weights:
        raise ForgettingError(
            f"This is no checkpoint of the authors' Face Transformer: {name!r} is missing."
        )
    own = tuple(weights[name].shape)
    if len(own) != len(shape) or any(w not in (None, size) for w, size in zip(shape, own)):
        wanted = ', '.join('any' if size is None else str(size) for size in shape)
        raise ForgettingError(f'{name!r} has the shape {own} and not ({wanted}).')
    return weights[name]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('input', type=Path, help="the authors' checkpoint")
    parser.add_argument('output', type=Path, help="where to write ImageClassifier's")
    parser.add_argument('--image-size', type=int, default=112, help='pixels; default: 112')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    state_dict, cfg = convert(read(args.input), args.image_size)
    save(dict(state_dict=state_dict, meta={}), args.output)
    print(f'{args.output}: {len(state_dict)} weights, for model = {cfg}')


if __name__ == '__main__':
    try:
        main()
    except ForgettingError as error:
        sys.exit(f'error: {error}')
