"""A plain model before any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn


def untrained(config: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a plain model with random weights, the same ones for a seed, on the CPU.

    Args:
        config: Of the plain model. Weights that it would load, a checkpoint's or published ones,
            are left out.
        seed: Of the random weights; the generator of everything else is left as it is.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS.build(_without_weights(config))
        model.init_weights()
    return model


def _without_weights(config: Any) -> Any:
    """A model's config that loads no weights, neither a checkpoint's nor published ones."""
    if isinstance(config, Mapping):
        kept = {key: _without_weights(value) for key, value in config.items() if key != 'weights'}
        pretrained = kept.get('init_cfg')
        if isinstance(pretrained, Mapping) and pretrained.get('type') == 'Pretrained':
            kept['init_cfg'] = None
        return kept
    if isinstance(config, (list, tuple)):
        return type(config)(_without_weights(value) for value in config)
    return config
