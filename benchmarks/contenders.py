"""The obvious alternatives to a step of ours, each in a plain model: what ours is timed against."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmgslora.families.registry import family_of
from mmgslora.lora import discover_groups, inject_lora

# The authors' numbers for COCO; no time depends on them.
_BOUND, _BETA, _ALPHA = 15.0, 0.03, 3e-4


def plain_model(cfg: Config) -> nn.Module:
    """The plain model of a forgetting config with random weights, which cost the same."""
    config = copy.deepcopy(cfg.model[family_of(cfg.model).name])
    if config.get('backbone', {}).get('init_cfg'):
        config['backbone']['init_cfg'] = None  # nothing is downloaded
    model = MODELS.build(config)
    model.init_weights()
    return model


class Finetuning:
    """MMDetection's own training step: all parameters, the losses of all decoder layers.

    Args:
        cfg: A forgetting config, with what the plain model is and how steps are optimised.
    """

    def __init__(self, cfg: Config) -> None:
        self.model = self._prepared(plain_model(cfg), family_of(cfg.model).model.frozen_parts)
        self.model.train()
        settings = dict(cfg.optim_wrapper, clip_grad=dict(max_norm=0.1))
        settings.update(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4))
        settings.pop('paramwise_cfg', None)
        self.optim_wrapper = build_optim_wrapper(self.model, settings)

    def _prepared(self, model: nn.Module, frozen: tuple[str, ...]) -> nn.Module:
        return model

    def step(self, batch: dict[str, Any]) -> None:
        """One step on a batch of both views, as the data loader made it."""
        self.model.train_step(batch, self.optim_wrapper)


class Peft(Finetuning):
    """The same step, joined and with all losses, where PEFT's LoRA is all that learns."""

    def _prepared(self, model: nn.Module, frozen: tuple[str, ...]) -> nn.Module:
        names = inject_lora(copy.deepcopy(model), exclude=frozen)
        return inject_adapter_in_model(LoraConfig(r=8, lora_alpha=1, target_modules=names), model)


class AuthorsWay(Finetuning):
    """The authors' step, written plainly: two passes, a hinge on one, a penalty on the groups."""

    def _prepared(self, model: nn.Module, frozen: tuple[str, ...]) -> nn.Module:
        inject_lora(model, exclude=frozen)
        self.groups = discover_groups(model)
        return model

    def step(self, batch: dict[str, Any]) -> None:
        """See :class:`Finetuning`."""
        with self.optim_wrapper.optim_context(self.model):
            retain = self._losses(batch, 'retain')
            forget = self._losses(batch, 'forget')
            ascended = sum(x for name, x in forget.items() if _classifies(name))
            others = sum(x for name, x in forget.items() if not _classifies(name))
            loss = sum(retain.values()) + _BETA * ((_BOUND - ascended).relu() + others)
            for group in self.groups:
                squares = sum(matrix.square().sum() for matrix in group.A + group.B)
                loss = loss + _ALPHA * squares.sqrt()
        self.optim_wrapper.update_params(loss)

    def _losses(self, batch: dict[str, Any], side: str) -> dict[str, Tensor]:
        rows = [i for i, x in enumerate(batch['data_samples']) if x.metainfo['view'] == side]
        half = {key: [values[i] for i in rows] for key, values in batch.items()}
        losses = self.model(**self.model.data_preprocessor(half, True), mode='loss')
        return {
            f'{name}.{i}': value
            for name, values in losses.items()
            if 'loss' in name
            for i, value in enumerate(values if isinstance(values, list) else [values])
        }


def _classifies(name: str) -> bool:
    return 'cls' in name or 'ce' in name
