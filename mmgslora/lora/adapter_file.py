"""Adapters as files, in the layout of the PEFT library.

A folder holds ``adapter_model.safetensors``, ``adapter_config.json`` and ``metadata.json``.
PEFT loads it into the same plain model. The metadata has a file of its own because older
versions of PEFT refuse a config with keys they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora.adapter import Adapter, is_of_adapter
from mmgslora.lora.fingerprint import fingerprint
from mmgslora.lora.folder import CONFIG, WEIGHTS, also_named, packed, write_folder
from mmgslora.lora.groups import discover_groups
from mmgslora.lora.inject import lora_layers, require_lora_layers
from mmgslora.lora.stored import PREFIX, StoredAdapter

# What PEFT takes for "no layer has LoRA".
_NO_TARGET = 'dummy-target-modules'


def save_adapter(model: nn.Module, folder: str | Path, metadata: dict[str, Any]) -> None:
    """Write the LoRA matrices of a model.

    With what it was trained on, the file is the trained model: see :func:`apply_adapter`. Layers
    whose B is zero add nothing and are left out, and with them every group that sparsity switched
    off. Beside what the caller says, ``metadata.json`` holds

    - ``base`` and ``result``: :func:`~mmgslora.lora.fingerprint` of the model that the adapter was
      trained on and of the merged one, by which a wrong base and a second merge are refused;
    - ``groups``: the layers of every group (a transformer block), left out or not;
    - ``also_named``: further names of changed weights, where a model uses a module twice;
    - ``files``: SHA-256 of the other two files; ``versions`` and ``command``.

    See :func:`~mmgslora.lora.folder.write_folder` for what is written when.

    Args:
        model: A model with LoRA layers, all of one rank and lora_alpha. Its module names go
            into the file: give the plain model, not a wrapper around it.
        folder: Where to write. Folders above it are made.
        metadata: Anything JSON can hold, such as ``task`` and ``classes``. May be empty.

    Raises:
        ForgettingError: If the model has no LoRA layers or has several ranks or scales, a merged
            weight would hold NaN or infinity, or ``folder`` holds anything but an adapter.
    """
    layers = require_lora_layers(model)
    kept = {name: layer for name, layer in layers.items() if layer.lora_B.any()}
    tensors = {
        f'{PREFIX}{name}.{matrix}.weight': getattr(layer, matrix)
        for name, layer in kept.items()
        for matrix in ('lora_A', 'lora_B')
    }
    config = json.dumps(_peft_config(layers, kept), indent=2) + '\n'
    files = {WEIGHTS: packed(tensors), CONFIG: config.encode()}

    state = {key: value for key, value in model.state_dict().items() if not is_of_adapter(key)}
    base = fingerprint(state)
    merged = {f'{name}.{layer.weight_name}': layer for name, layer in kept.items()}
    others = also_named(model, list(merged))
    for key, layer in merged.items():
        state.update(dict.fromkeys([key, *others.get(key, ())], layer.merged_weight()))
    write_folder(folder, files, metadata, base, fingerprint(state), others, groups=_groups(model))


def _peft_config(layers: dict[str, Adapter], kept: Collection[str]) -> dict[str, Any]:
    settings = {(layer.rank, layer.lora_alpha) for layer in layers.values()}
    if len(settings) > 1:
        raise ForgettingError(
            f'An adapter file holds one rank and lora_alpha; this model has {sorted(settings)}.'
        )
    rank, lora_alpha = settings.pop()
    return {
        'peft_type': 'LORA',
        'task_type': None,
        'base_model_name_or_path': None,
        'inference_mode': True,
        'r': rank,
        'lora_alpha': lora_alpha,
        'lora_dropout': 0.0,
        'bias': 'none',
        'fan_in_fan_out': False,
        'target_modules': list(kept) or _NO_TARGET,
        'modules_to_save': None,
    }


def _groups(model: nn.Module) -> dict[str, list[str]]:
    """Layer names by the group they are in."""
    names = {id(layer.lora_A): name for name, layer in lora_layers(model).items()}
    return {group.name: [names[id(a)] for a in group.A] for group in discover_groups(model)}


@torch.no_grad()
def load_adapter(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Read an adapter folder into the LoRA layers of a model, and the modules it holds whole.

    Layers that the file leaves out get B = 0: they add nothing.

    Args:
        model: The model that the adapter was trained on, injected with the same rank and at
            least its layers. Values are cast to the dtype and moved to the device they have there.
        folder: As written by :func:`save_adapter`, or by PEFT.

    Returns:
        dict: The metadata of the adapter; empty where there is none.

    Raises:
        ForgettingError: If the folder cannot be read or was changed, belongs to another model, or
            the names, the shapes or the scale do not fit. The model is unchanged then.
    """
    layers = require_lora_layers(model)
    adapter = StoredAdapter.read(folder)
    state = {key: value for key, value in model.state_dict().items() if not is_of_adapter(key)}
    for name, (lora_a, _) in adapter.pairs.items():
        if name not in layers:
            raise ForgettingError(
                f'The adapter in {folder} is of {name!r}, which is no LoRA layer of the model.'
            )
        layer = layers[name]
        if len(lora_a) != layer.rank:
            raise ForgettingError(
                f'The adapter in {folder} has rank {len(lora_a)} and {name!r} of the model has '
                f'{layer.rank}; they must be equal.'
            )
        if adapter.scale(name) != layer.scale:
            raise ForgettingError(
                f'The scale is {adapter.scale(name)!r} in {folder} and {layer.scale!r} in {name!r} '
                'of the model; set lora_alpha so that they are equal.'
            )
    adapter.merged(state)  # refuses what does not fit before anything is changed
    for name, layer in layers.items():
        if name in adapter.pairs:
            layer.lora_A.copy_(adapter.pairs[name][0])
            layer.lora_B.copy_(adapter.pairs[name][1])
        else:
            layer.lora_B.zero_()
    model.load_state_dict({**state, **adapter.whole}, strict=False)  # the LoRA matrices are there
    return adapter.metadata


@torch.no_grad()
def apply_adapter(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Merge an adapter folder into a plain model: what a finished task was, again.

    The original and the folders of tasks 1 to t, applied in this order, give ``merged/task_t.pth``.

    Args:
        model: The plain model with the weights that the task began with. It needs no LoRA layers.
        folder: As written by :func:`save_adapter`, or by PEFT.

    Returns:
        dict: The metadata of the adapter; empty where there is none.

    Raises:
        ForgettingError: If the folder cannot be read or was changed, belongs to another model or
            was merged into this one already, does not fit the model, or a merged weight would
            hold NaN or infinity. The model is unchanged then.
    """
    adapter = StoredAdapter.read(folder)
    model.load_state_dict(adapter.merged(model.state_dict()))
    return adapter.metadata
