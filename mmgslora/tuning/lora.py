"""LoRA: low-rank adapters beside frozen weights, merged at the end of each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mmgslora.lora import (
    Adapter,
    LoRAGroup,
    adapters_disabled,
    check_live_adapters,
    discover_groups,
    inject_lora,
    is_of_adapter,
    lora_layers,
    merge_adapters,
    reset_adapters,
    save_adapter,
)
from mmgslora.settings import Count, Positive, checked
from mmgslora.tuning.base import TUNERS, Tuner


@TUNERS.register_module()
class LoRA(Tuner):
    """Adapters in the transformer blocks, the choice of GS-LoRA (arXiv 2403.11530).

    The model at the start of the task costs nothing: it is this one with its adapters off. So is
    the original, until the first task is merged; what of it the tasks change is copied then.

    Args:
        rank: Rank of every adapter. Defaults to 8.
        lora_alpha: Numerator of the scale lora_alpha / rank. Defaults to 1.
        layers: What carries adapters: 'ffn' (the feed-forward network of every transformer
            block), 'attention' (the projections of its attention) or 'all' (both). Defaults to
            'ffn'.
        target: A regular expression over the names of Linears instead of ``layers``. Defaults to
            None.
        exclude: Names of parts without adapters. Defaults to None: those that the family leaves
            alone, backbone and neck of a detector.
        init: How the adapters of the first task start, see
            :meth:`~mmgslora.lora.LoRALinear.reset`. Defaults to 'kaiming'.
    """

    has_groups = True
    _in_model = ('task_start', 'original')

    @checked
    def __init__(
        self,
        rank: Count = 8,
        lora_alpha: Positive = 1.0,
        layers: Literal['ffn', 'attention', 'all'] = 'ffn',
        target: str | None = None,
        exclude: Sequence[str] | None = None,
        init: Literal['kaiming', 'xavier'] = 'kaiming',
    ) -> None:
        super().__init__()
        self.rank, self.lora_alpha, self.init = rank, lora_alpha, init
        self.layers, self.target, self.exclude = layers, target, exclude

    def _attach(self, frozen_parts: Sequence[str]) -> None:
        exclude = self.exclude
        if exclude is None:
            exclude = [part for part in frozen_parts if getattr(self.model, part, None)]
        inject_lora(
            self.model, self.rank, self.lora_alpha, self.target, exclude, self.init, self.layers
        )

    def _begin_task(self, generator: torch.Generator | None, first: bool) -> None:
        if first:
            self._copies.pop('original', None)
        reset_adapters(self.model, generator, first)

    def end_task(self, generator: torch.Generator | None = None) -> None:
        """Merge the adapters and start fresh ones.

        Raises:
            ForgettingError: A merged weight would hold NaN or infinity; nothing is changed then.
        """
        if 'original' in self._asked and 'original' not in self._copies:
            self._copies['original'] = self._copy()
        merge_adapters(self.model, generator)

    @contextmanager
    def _off(self) -> Iterator[nn.Module]:
        with adapters_disabled(self.model):
            yield self.model

    def teacher(self, name: str) -> AbstractContextManager[nn.Module]:
        self._asked.add(name)  # a resumed task did not begin with it
        off = name in self._in_model and name not in self._copies
        return self._off() if off else super().teacher(name)

    def at_start(self) -> AbstractContextManager[Any]:
        return self._off()

    def _copy(self) -> nn.Module:
        copied = super()._copy()
        for layer in lora_layers(copied).values():
            layer.enabled = False
        return copied

    def learns(self, module: nn.Module, recurse: bool = True) -> bool:
        if not recurse:
            return isinstance(module, Adapter) and module.learns
        return any(layer.learns for layer in lora_layers(module).values())

    def owns(self, key: str) -> bool:
        return is_of_adapter(key)

    def save(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """As :func:`~mmgslora.lora.save_adapter`, in the layout of the PEFT library."""
        save_adapter(self.model, folder, dict(metadata))

    def check_gradients(self) -> None:
        check_live_adapters(self.model)

    def groups(self, by: str) -> list[LoRAGroup]:
        return discover_groups(self.model, by)

    def settings(self) -> dict[str, Any]:
        """With the names of the layers that carry adapters instead of what chose them."""
        chosen = super().settings()
        for name in ('layers', 'target', 'exclude'):
            del chosen[name]
        return dict(**chosen, targets=list(lora_layers(self.model)))
