"""Gives a method the prototypes of the original model."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import set_random_seed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.lora import adapters_disabled, fingerprint

_KEY = 'original_fingerprint'
_FILE = 'prototypes.safetensors'
_TELL_EVERY = 10.0  # seconds


@HOOKS.register_module()
class PrototypeHook(Hook):
    """Computes the prototypes once, before the first task, and keeps them with the run.

    A prototype is the mean embedding of a class in the original model, over the images of
    the first task's two views (which hold every class but the missing ones) as the training
    pipeline varies them; or the class's row in the classifier's weight, as the method asks. They
    are written to ``prototypes.safetensors`` together with the fingerprint of the original, which
    is checked when a resumed run, or another one, reads them. The seconds it took go to the
    message hub (``prototype_seconds``) and are in the record.

    The authors' code takes the model of the moment instead, or one that is still random.

    Args:
        passes: How often the images are gone through, each time varied anew. Defaults to 4.

    Raises:
        ForgettingError: A file with prototypes cannot be read, or belongs to another model.
    """

    def __init__(self, passes: int = 4) -> None:
        self.passes = passes

    def before_forget_task(self, runner) -> None:
        loop, hub = runner.train_loop, runner.message_hub
        model, method = loop.model, loop.model.method
        if loop.task > 1 or method.prototype_source is None:
            return
        started = time.perf_counter()
        original = fingerprint(model.plain_model)
        hub.update_info(_KEY, original)
        if method.prototype_file is not None:
            method.prototypes = _load(Path(method.prototype_file), original, loop.views.classes)
        elif method.prototype_source == 'head':
            method.prototypes = model.classifier_weight.detach().clone()
        else:
            method.prototypes = self._mean_embeddings(runner)
        if is_main_process():
            metadata = dict(original=original, classes='\n'.join(loop.views.classes))
            own = Path(runner.work_dir, _FILE)
            draft = own.with_suffix('.tmp')
            tensors = dict(prototypes=method.prototypes.cpu().contiguous())
            draft.write_bytes(save(tensors, metadata))  # save_file would shut others out
            draft.replace(own)
        hub.update_info('prototype_seconds', time.perf_counter() - started)

    def before_train_epoch(self, runner) -> None:
        loop, method = runner.train_loop, runner.train_loop.model.method
        if method.prototype_source is not None and method.prototypes is None:  # resumed
            original = runner.message_hub.get_info(_KEY)
            method.prototypes = _load(Path(runner.work_dir, _FILE), original, loop.views.classes)

    @torch.no_grad()
    def _mean_embeddings(self, runner) -> Tensor:
        model = runner.train_loop.model
        weight = model.classifier_weight
        sums, counts = torch.zeros_like(weight), weight.new_zeros(len(weight))
        model.eval()
        set_random_seed(runner.seed, diff_rank_seed=True)  # the pipeline's variations
        loader = runner.train_loop.dataloader
        steps, done, told = self.passes * len(loader), 0, time.perf_counter()
        print_log(f'Prototypes: {self.passes} passes of {len(loader)} batches', logger='current')
        with adapters_disabled(model.plain_model):
            for _ in range(self.passes):
                for batch in loader:
                    done += 1
                    if time.perf_counter() - told >= _TELL_EVERY:
                        told = time.perf_counter()
                        print_log(f'Prototypes: batch {done} of {steps}', logger='current')
                    for view in model.views(**model.data_preprocessor(batch, True)).values():
                        sums.index_add_(0, view.labels, view.embeddings.to(sums))
                        counts += torch.bincount(view.labels, minlength=len(counts))
        for total in (sums, counts):
            all_reduce(total)
        return sums / counts[:, None]  # NaN where a class has no data


def _load(path: Path, original: str, classes: tuple[str, ...]) -> Tensor:
    try:
        with safe_open(path, framework='pt') as file:
            metadata, prototypes = file.metadata() or {}, file.get_tensor('prototypes')
    except (OSError, SafetensorError) as error:
        raise ForgettingError(
            f'Prototypes {str(path)!r} cannot be read ({error}); remove prototype_file from the '
            'method to have them computed.'
        ) from error
    if metadata.get('original') != original or metadata.get('classes') != '\n'.join(classes):
        raise ForgettingError(
            f'Prototypes {str(path)!r} were computed from another model or other classes; remove '
            'prototype_file from the method to have them computed from this one.'
        )
    return prototypes
