"""Adapters as files, in the layout of the PEFT library.

A folder holds ``adapter_model.safetensors``, ``adapter_config.json`` and ``metadata.json``.
PEFT loads it into the same plain model. The metadata has a file of its own because older
versions of PEFT refuse a config with keys they do not know.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.lora.adapter import merged_weight
from mmgslora.lora.inject import require_lora_layers

_WEIGHTS = 'adapter_model.safetensors'
_CONFIG = 'adapter_config.json'
_METADATA = 'metadata.json'
_PREFIX = 'base_model.model.'


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    metadata: dict[str, Any],
    modules_to_save: Sequence[str] = (),
) -> None:
    """Write the LoRA matrices of a model, and whole modules that a run replaced beside them.

    With what it was trained on, the file is the trained model: see :func:`apply_adapter`.

    The folder appears under its name only when it is complete: a killed process leaves no
    folder or a whole one. An adapter that is there already is replaced.

    Args:
        model: A model with LoRA layers, all of one rank and lora_alpha. Its module names go
            into the file: give the plain model, not a wrapper around it.
        folder: Where to write. Folders above it are made.
        metadata: Anything JSON can hold, e.g. the forgetting task. May be empty.
        modules_to_save: Names of modules whose parameters and buffers go into the file as they
            are, e.g. ``['bbox_head.cls_branches.5']``. Defaults to none.

    Raises:
        ForgettingError: If the model has no LoRA layers or has several ranks or scales, lacks a
            module of ``modules_to_save``, or if ``folder`` holds anything but an adapter.
    """
    layers = require_lora_layers(model)
    settings = {(layer.rank, layer.lora_alpha) for layer in layers.values()}
    if len(settings) > 1:
        raise ForgettingError(
            f'An adapter file holds one rank and lora_alpha; this model has {sorted(settings)}.'
        )
    rank, lora_alpha = settings.pop()
    config = {
        'peft_type': 'LORA',
        'task_type': None,
        'base_model_name_or_path': None,
        'inference_mode': True,
        'r': rank,
        'lora_alpha': lora_alpha,
        'lora_dropout': 0.0,
        'bias': 'none',
        'fan_in_fan_out': False,
        'target_modules': list(layers),
        'modules_to_save': list(modules_to_save) or None,
    }
    tensors = {
        f'{_PREFIX}{key}': value.detach().cpu().contiguous()
        for key, value in _whole(model, modules_to_save).items()
    }
    for name, layer in layers.items():
        for matrix in ('lora_A', 'lora_B'):
            key = f'{_PREFIX}{name}.{matrix}.weight'
            tensors[key] = getattr(layer, matrix).detach().cpu().contiguous()

    folder = Path(folder).resolve()
    foreign = _foreign_files(folder)
    if foreign:
        raise ForgettingError(
            f'{folder} is not replaced by an adapter because it holds {foreign[0]!r}; give a '
            'new folder.'
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f'.{folder.name}.{uuid.uuid4().hex}')
    try:
        draft.mkdir()
        # save_file would shut others out.
        (draft / _WEIGHTS).write_bytes(save(tensors, metadata={'format': 'pt'}))
        (draft / _CONFIG).write_text(json.dumps(config, indent=2) + '\n')
        (draft / _METADATA).write_text(json.dumps(metadata, indent=2) + '\n')
        if folder.exists():
            old = draft.with_name(f'{draft.name}.old')
            folder.rename(old)
            draft.rename(folder)
            shutil.rmtree(old)
        else:
            draft.rename(folder)
    finally:
        # What an error left behind; after success the draft has its final name.
        shutil.rmtree(draft, ignore_errors=True)


def _foreign_files(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [folder.name]
    ours = {_WEIGHTS, _CONFIG, _METADATA}
    return sorted(path.name for path in folder.iterdir() if path.name not in ours)


@torch.no_grad()
def load_adapter(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Read an adapter folder into the LoRA layers of a model, and the modules it holds whole.

    Args:
        model: The model, injected with the same targets and rank. Values are cast to the dtype
            and moved to the device they have there.
        folder: As written by :func:`save_adapter`.

    Returns:
        dict: The metadata of the adapter; empty where there is none.

    Raises:
        ForgettingError: If the folder cannot be read, or the names, the shapes or the scale
            do not fit the model. The model is unchanged then.
    """
    layers = require_lora_layers(model)
    folder = Path(folder)
    tensors, config, metadata = _read(folder)
    wanted = {f'{_PREFIX}{k}': v for k, v in _whole(model, _saved_whole(config)).items()}
    for name, layer in layers.items():
        wanted[f'{_PREFIX}{name}.lora_A.weight'] = layer.lora_A
        wanted[f'{_PREFIX}{name}.lora_B.weight'] = layer.lora_B
    _check_fit(tensors, wanted, folder)
    for name, layer in layers.items():
        if config.get('lora_alpha') != layer.lora_alpha:
            raise ForgettingError(
                f'lora_alpha is {config.get("lora_alpha")!r} in {folder} and '
                f'{layer.lora_alpha!r} in {name!r} of the model; they must be equal.'
            )
    for key, value in wanted.items():
        value.copy_(tensors[key])
    return metadata


@torch.no_grad()
def apply_adapter(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Merge an adapter folder into a plain model: what a finished task was, again.

    The original and the folders of tasks 1 to t, applied in this order, give ``merged/task_t.pth``.

    Args:
        model: The plain model with the weights that the task began with. It needs no LoRA layers.
        folder: As written by :func:`save_adapter`.

    Returns:
        dict: The metadata of the adapter; empty where there is none.

    Raises:
        ForgettingError: If the folder cannot be read or does not fit the model, or a merged weight
            would hold NaN or infinity. The model is unchanged then.
    """
    folder = Path(folder)
    tensors, config, metadata = _read(folder)
    rank, lora_alpha = config.get('r'), config.get('lora_alpha')
    wanted = {f'{_PREFIX}{k}': v for k, v in _whole(model, _saved_whole(config)).items()}
    weights = {name: _adapted(_module(model, name)) for name in config.get('target_modules', ())}
    for name, weight in weights.items():
        rows, columns = weight.shape
        wanted[f'{_PREFIX}{name}.lora_A.weight'] = weight.new_empty(rank, columns)
        wanted[f'{_PREFIX}{name}.lora_B.weight'] = weight.new_empty(rows, rank)
    _check_fit(tensors, wanted, folder)
    merged = {}
    for name, weight in weights.items():
        pair = (tensors[f'{_PREFIX}{name}.lora_{matrix}.weight'] for matrix in 'AB')
        lora_a, lora_b = (matrix.to(weight.device) for matrix in pair)
        try:
            merged[name] = merged_weight(weight, lora_a, lora_b, lora_alpha / rank)
        except ForgettingError as error:
            raise ForgettingError(f'{name}: {error}') from error
    for name, weight in merged.items():
        weights[name].copy_(weight)
    for key, value in wanted.items():
        if '.lora_' not in key:
            value.copy_(tensors[key])
    return metadata


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Tensors, config and metadata of an adapter folder."""
    try:
        tensors = load_file(folder / _WEIGHTS)
        config = json.loads((folder / _CONFIG).read_text())
        metadata_file = folder / _METADATA
        metadata = json.loads(metadata_file.read_text()) if metadata_file.exists() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise ForgettingError(f'{folder} is not a readable adapter folder: {error}') from error
    return tensors, config, metadata


def _saved_whole(config: dict[str, Any]) -> list[str]:
    return config.get('modules_to_save') or []


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ForgettingError(
            f'{type(model).__name__} has no module {name!r}, which the adapter is of.'
        ) from error


def _adapted(module: nn.Module) -> Tensor:
    """The weight that an adapter of this module changes."""
    packed = isinstance(module, nn.MultiheadAttention)
    return module.in_proj_weight if packed else module.weight


def _whole(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Parameters and buffers of these modules under their names in the model."""
    return {
        f'{name}.{key}': value
        for name in names
        for key, value in _module(model, name).state_dict(keep_vars=True).items()
    }


def _check_fit(tensors: dict[str, Tensor], wanted: dict[str, Tensor], folder: Path) -> None:
    for key, value in wanted.items():
        if key not in tensors:
            raise ForgettingError(f'The adapter in {folder} lacks {key!r}, which the model has.')
        if tensors[key].shape != value.shape:
            raise ForgettingError(
                f'{key!r} has shape {tuple(tensors[key].shape)} in {folder}; the model needs '
                f'{tuple(value.shape)}.'
            )
    for key in tensors:
        if key not in wanted:
            raise ForgettingError(f'The adapter in {folder} has {key!r}, which the model lacks.')
