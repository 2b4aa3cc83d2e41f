"""Prototypes: where the original model has each class."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.logging import print_log
from mmengine.runner import set_random_seed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmgslora.atomic import replacing
from mmgslora.errors import ForgettingError
from mmgslora.lora import fingerprint
from mmgslora.methods.base import Context, Part

FILE = 'prototypes.safetensors'
_TELL_EVERY = 10.0  # seconds


class Prototypes(Part):
    """One row per class: its mean embedding in the original model, or its row in the head.

    They are made once, before the first task, and stay the same for all; they go into every
    checkpoint, and into ``prototypes.safetensors`` together with the fingerprint of the original,
    which is checked when another run reads the file. Means are over the images of the first
    task's two views (which hold every class but the missing ones) as the training pipeline varies
    them.

    The authors' code takes the model of the moment instead, or one that is still random.

    Args:
        source: 'embeddings' or 'head'.
        file: Take them from this file, made by an earlier run from the same model. Defaults to
            None.
        passes: How often the images are gone through, each time varied anew; once where the data
            are not drawn anew (``redraw``). Defaults to 4.

    Raises:
        ForgettingError: The file cannot be read, or belongs to another model.
    """

    def __init__(self, source: str, file: str | None = None, passes: int = 4) -> None:
        self.source, self.file, self.passes = source, file, passes
        self.values: Tensor | None = None
        """(C, D), NaN for a class without data."""

    def of(self, labels: Tensor) -> Tensor:
        """(k, D) the prototypes of some classes, on their device."""
        self.values = self.values.to(labels.device)
        return self.values[labels]

    def before_task(self, context: Context) -> None:
        if context.task.number > 1:
            return
        original = fingerprint(context.model.plain_model)
        names = '\n'.join(context.task.names)
        if self.file is not None:
            self.values = _load(Path(self.file), original, names, self.source)
        elif self.source == 'head':
            self.values = context.model.classifier_weight.detach().clone()
        else:
            self.values = self._mean_embeddings(context)
        if is_main_process() and context.work_dir is not None:
            tensors = dict(prototypes=self.values.cpu().contiguous())
            content = save(tensors, dict(original=original, classes=names, source=self.source))
            with replacing(context.work_dir / FILE) as draft:
                draft.write_bytes(content)  # save_file would shut others out

    def files(self, tasks: int) -> list[str]:
        return [] if self.file is None else [self.file]

    def state_dict(self) -> dict[str, Any]:
        return dict(values=self.values)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = state.get('values', self.values)

    @torch.no_grad()
    def _mean_embeddings(self, context: Context) -> Tensor:
        weight = context.model.classifier_weight
        sums, counts = torch.zeros_like(weight), weight.new_zeros(len(weight))
        context.model.eval()
        set_random_seed(context.seed, diff_rank_seed=True)  # the pipeline's variations
        batches = context.batches
        passes = self.passes if context.redraws else 1
        steps, done, told = passes * batches, 0, time.perf_counter()
        times = f'{passes} passes' if passes > 1 else 'one pass'
        print_log(f'Prototypes: {times} of {batches} batches', logger='current')
        with context.model.tune.at_start():
            for views in chain.from_iterable(context.views() for _ in range(passes)):
                done += 1
                if time.perf_counter() - told >= _TELL_EVERY:
                    told = time.perf_counter()
                    print_log(f'Prototypes: batch {done} of {steps}', logger='current')
                for view in views.values():
                    embeddings = view.now.embeddings[view.matched]
                    sums.index_add_(0, view.labels, embeddings.to(sums))
                    counts += torch.bincount(view.labels, minlength=len(counts))
        for total in (sums, counts):
            all_reduce(total)
        return sums / counts[:, None]  # NaN where a class has no data


def _load(path: Path, original: str, names: str, source: str) -> Tensor:
    try:
        with safe_open(path, framework='pt') as file:
            metadata, prototypes = file.metadata() or {}, file.get_tensor('prototypes')
    except (OSError, SafetensorError) as error:
        raise ForgettingError(
            f'Prototypes {str(path)!r} cannot be read ({error}); remove prototype_file from the '
            'method to have them computed.'
        ) from error
    if metadata.get('original') != original or metadata.get('classes') != names:
        raise ForgettingError(
            f'Prototypes {str(path)!r} were computed from another model or other classes; remove '
            'prototype_file from the method to have them computed from this one.'
        )
    made_of = metadata.get('source', source)  # files of earlier versions do not say it
    if made_of != source:
        raise ForgettingError(
            f'Prototypes {str(path)!r} are of {made_of!r} and method.prototypes is {source!r}; '
            f'make it {made_of!r}, or remove prototype_file.'
        )
    return prototypes
