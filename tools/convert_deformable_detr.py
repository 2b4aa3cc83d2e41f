"""Turn a checkpoint of the original Deformable DETR into one that MMDetection loads.

For ``r50_deformable_detr-checkpoint.pth`` of fundamentalvision/Deformable-DETR and
``mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py`` with ONE setting changed:
``model.neck.bias=True``. The original's input projections have a bias, which their group
normalization does not cancel, and MMDetection's have none unless they are asked to.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import Tensor

import mmgslora  # noqa: F401  puts compat in place
from mmgslora.errors import ForgettingError

CONFIG = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
NUM_ROWS = 91
# The original's row of class scores is COCO's category id, and of 0 to 90 these name no class.
UNUSED_ROWS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
ROWS = [row for row in range(NUM_ROWS) if row not in UNUSED_ROWS]
# What FrozenBatchNorm2d drops as well when it loads.
DROPPED = re.compile(r'backbone\.0\.body\..*\.num_batches_tracked')
ENCODER, DECODER = (rf'^transformer\.{coder}(\.layers\.\d+)' for coder in ('encoder', 'decoder'))

# From MMDetection's names to the original's, every line applied in turn. In this direction a key
# that the input lacks is named as its authors named it.
RENAMES: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = (
    (r'^backbone\.', 'backbone.0.body.'),
    (r'^neck\.extra_convs\.(\d+)', lambda m: f'neck.convs.{int(m[1]) + 3}'),
    (r'^neck\.convs\.(\d+)\.conv\.', r'input_proj.\1.0.'),
    (r'^neck\.convs\.(\d+)\.gn\.', r'input_proj.\1.1.'),
    (r'^query_embedding\.', 'query_embed.'),
    (r'^reference_points_fc\.', 'transformer.reference_points.'),
    (r'^(level_embed|encoder|decoder)', r'transformer.\1'),
    (r'\.ffn\.layers\.0\.0\.', '.linear1.'),
    (r'\.ffn\.layers\.1\.', '.linear2.'),
    (r'\.self_attn\.attn\.', '.self_attn.'),
    # MMDetection numbers the norms as they are applied. So does the original in its encoder; in
    # its decoder norm1 belongs to the cross-attention, which comes second.
    (ENCODER + r'\.norms\.0\.', r'transformer.encoder\1.norm1.'),
    (ENCODER + r'\.norms\.1\.', r'transformer.encoder\1.norm2.'),
    (DECODER + r'\.norms\.0\.', r'transformer.decoder\1.norm2.'),
    (DECODER + r'\.norms\.1\.', r'transformer.decoder\1.norm1.'),
    (DECODER + r'\.norms\.2\.', r'transformer.decoder\1.norm3.'),
    (r'^bbox_head\.cls_branches\.', 'class_embed.'),
    # MMDetection counts the ReLUs between the layers.
    (
        r'^bbox_head\.reg_branches\.(\d+)\.(\d+)\.',
        lambda m: f'bbox_embed.{m[1]}.layers.{int(m[2]) // 2}.',
    ),
)


def original_name(key: str) -> str:
    """The original's name of one of MMDetection's keys."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def read(path: Path) -> dict[str, Tensor]:
    """The original's weights, read without running code that the file may hold.

    What training left beside them (optimizer, lr_scheduler, epoch, args) is dropped.

    Args:
        path: A file with the key 'model'.

    Raises:
        ForgettingError: It is missing, is no checkpoint, or has no weights under 'model'; or
            torch is older than 2.4.
    """
    if not path.is_file():
        raise ForgettingError(f'Checkpoint {str(path)!r} does not exist.')
    if not hasattr(torch.serialization, 'add_safe_globals'):
        raise ForgettingError(
            f'torch is {torch.__version__}; reading the original checkpoint safely needs 2.4 or '
            'newer. What the converter writes loads in older versions too.'
        )
    # The original saves its command line next to the weights.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint make the unpickler fail in nearly every way there is, and
        # its own words for objects that it does not trust advise to load them all the same.
        raise ForgettingError(
            f'{str(path)!r} cannot be read as weights: it is cut off, is no checkpoint, or holds '
            'objects that PyTorch does not load without running code of theirs.'
        ) from error
    weights = checkpoint.get('model') if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ForgettingError(
            f"{str(path)!r} is no checkpoint of the original Deformable DETR: it has no key 'model'"
            ' with weights.'
        )
    return weights


def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's state dict with the original's weights.

    Layers, queries, channels and feature levels are as many as the input has; the heads are 8
    and the points 4, the defaults of both.

    Args:
        weights: The original's state dict.

    Raises:
        ForgettingError: There is LoRA among the weights, or a weight is missing, has another
            shape, or has no place in the model.
    """
    refuse_lora(weights)
    _refuse_variants(weights)
    cfg = model_config(weights)
    state_dict, used = {}, set()
    for key, wanted in _empty_state_dict(cfg).items():
        name = original_name(key)
        if key.endswith('.num_batches_tracked'):
            # Frozen batch normalization does not count; MMDetection's has the counter anyway.
            state_dict[key] = torch.zeros_like(wanted, device='cpu')
            continue
        shape = wanted.shape
        is_classifier = name.startswith('class_embed.')
        if is_classifier:
            shape = (NUM_ROWS, *shape[1:])
        weight = _get(weights, name, shape)
        state_dict[key] = weight[ROWS] if is_classifier else weight
        used.add(name)
    for name in weights:
        if name not in used and not DROPPED.fullmatch(name):
            raise ForgettingError(
                f'{name!r} has no place in a plain Deformable DETR with ResNet-50; '
                'other variants cannot be converted.'
            )
    _check_heads_are_one(weights)
    return state_dict


def model_config(weights: dict[str, Tensor]) -> ConfigDict:
    """MMDetection's config of the model, as large as the original's weights.

    Args:
        weights: The original's state dict.
    """
    levels, channels = _get(weights, 'transformer.level_embed', (None, None)).shape
    queries = _get(weights, 'query_embed.weight', (None, 2 * channels)).shape[0]
    hidden = _get(weights, 'transformer.encoder.layers.0.linear1.weight', (None, channels)).shape[0]
    if channels % 32:
        raise ForgettingError(
            f"'transformer.level_embed' has {channels} channels, which is not a multiple of the "
            '32 groups of the input projections.'
        )
    cfg = get_config(CONFIG).model
    cfg.num_queries, cfg.num_feature_levels = queries, levels
    cfg.neck.update(out_channels=channels, num_outs=levels, bias=True)
    for name in ('encoder', 'decoder'):
        layer = re.compile(rf'transformer\.{name}\.layers\.(\d+)\.')
        indices = {match[1] for match in map(layer.match, weights) if match}
        cfg[name].num_layers = max(1, len(indices))
        for part in cfg[name].layer_cfg.values():
            part.embed_dims = channels
        cfg[name].layer_cfg.ffn_cfg.feedforward_channels = hidden
    cfg.encoder.layer_cfg.self_attn_cfg.num_levels = levels
    cfg.decoder.layer_cfg.cross_attn_cfg.num_levels = levels
    cfg.positional_encoding.num_feats = channels // 2
    cfg.bbox_head.embed_dims = channels
    return cfg


def coco_classes() -> tuple[str, ...]:
    """COCO's 80 classes in ascending order of their category ids."""
    from mmdet.datasets import CocoDataset

    return CocoDataset.METAINFO['classes']


def save(checkpoint: dict, path: Path) -> None:
    """Writes all of a checkpoint or nothing.

    Args:
        checkpoint: What to save.
        path: Where; folders that are missing are made.
    """
    draft = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, draft)
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        draft.unlink(missing_ok=True)
        raise ForgettingError(f'{str(path)!r} cannot be written: {error}') from error


def refuse_lora(weights: dict[str, Tensor]) -> None:
    """Adapters of the authors' forgetting runs.

    Args:
        weights: The state dict of a file.

    Raises:
        ForgettingError: There is LoRA among the weights.
    """
    adapters = [name for name in weights if 'lora_' in name]
    if adapters:
        raise ForgettingError(
            f'{adapters[0]!r} is a LoRA matrix. The files of a forgetting run hold LoRA and '
            'weights it may be merged into already, which nothing in them tells; convert the '
            'pre-trained model.'
        )


def _refuse_variants(weights: dict[str, Tensor]) -> None:
    two_stage = any(name.startswith('transformer.enc_output') for name in weights)
    refined = any(name.startswith('transformer.decoder.bbox_embed.') for name in weights)
    if two_stage or refined:
        variant = 'two-stage' if two_stage else 'box refinement'
        raise ForgettingError(
            f'This is the {variant} variant of Deformable DETR, which MMDetection publishes '
            'itself: take its checkpoint from the model zoo, next to configs/deformable_detr.'
        )


def _check_heads_are_one(weights: dict[str, Tensor]) -> None:
    """Every decoder layer must have the same head: MMDetection keeps a single one."""
    for name, weight in weights.items():
        first = re.sub(r'^((class|bbox)_embed)\.\d+', r'\1.0', name)
        if name != first and not torch.equal(weight, weights[first]):
            raise ForgettingError(
                f'{name!r} differs from {first!r}: heads of their own belong to the box '
                'refinement variant of Deformable DETR, which MMDetection publishes itself.'
            )


def _get(weights: dict[str, Tensor], name: str, shape: tuple[int | None, ...]) -> Tensor:
    """A weight of the shape that is wanted; None stands for any size."""
    if name not in weights:
        raise ForgettingError(
            f'This is no checkpoint of the original Deformable DETR: {name!r} is missing.'
        )
    weight = weights[name]
    own = tuple(weight.shape) if isinstance(weight, Tensor) else None
    if (
        own is None
        or len(own) != len(shape)
        or any(wanted not in (None, size) for wanted, size in zip(shape, own))
    ):
        wanted = ', '.join('any' if size is None else str(size) for size in shape)
        raise ForgettingError(
            f'{name!r} has the shape {own} and not ({wanted}): only the plain model with '
            f'ResNet-50 and its {NUM_ROWS} rows of classes can be converted.'
        )
    return weight


def _empty_state_dict(cfg: ConfigDict) -> dict[str, Tensor]:
    """The keys and shapes of the model, without memory for the weights."""
    from mmdet.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        return MODELS.build(cfg).state_dict()


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('input', type=Path, help="the original's checkpoint")
    parser.add_argument('output', type=Path, help="where to write MMDetection's")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    state_dict = convert(read(args.input))
    save(
        dict(state_dict=state_dict, meta=dict(dataset_meta=dict(classes=coco_classes()))),
        args.output,
    )
    print(f'{args.output}: {len(state_dict)} weights, for a detector with neck.bias=True.')


if __name__ == '__main__':
    try:
        main()
    except ForgettingError as error:
        sys.exit(f'error: {error}')
