"""A plain model before any training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

TOKEN_STD = 0.02
"""Standard deviation of a parameter that no module draws, as of a class token or positions."""


def untrained(config: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a plain model with random weights, the same ones for a seed, on the CPU.

    Args:
        config: Of the plain model, which is built as it says, without checkpoints of its parts
            (``pretrained``, ``init_cfg``). Published ``weights`` stay, for they may decide on
            sizes. Where these, or what another library's function loads, may be in the model, all
            is drawn anew: modules with ``reset_parameters`` do that themselves, the parameters of
            others come from a normal distribution (:data:`TOKEN_STD`).
        seed: Of the random weights; the generator of everything else is left as it is.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS.build(copy.deepcopy(without_checkpoints(config)))
        if getattr(model, 'may_be_trained', False):
            _draw(model)
        model.init_weights()
    return model


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=TOKEN_STD)


def without_checkpoints(config: Any) -> Any:
    """A model's config whose parts load no checkpoint of theirs."""
    if isinstance(config, Mapping):
        return {
            key: None if _is_checkpoint(value) else without_checkpoints(value)
            for key, value in config.items()
            if key != 'pretrained'
        }
    if isinstance(config, (list, tuple)):
        return type(config)(without_checkpoints(x) for x in config if not _is_checkpoint(x))
    return config


def _is_checkpoint(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get('type') == 'Pretrained'
