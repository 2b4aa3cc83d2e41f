"""The ImageNet900 check: what forgetting among 100 classes does to the 900 others."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

from mmgslora.errors import ForgettingError
from mmgslora.models.imagenet_head import ImageNetHead, head_rows


@HOOKS.register_module()
class ImageNet900Hook(Hook):
    """Top-1 accuracy over 1000 ways on images of the classes that were never in the data.

    As in the authors' ImageNet100 runs: the published 1000-way head is put back on the embeddings,
    and the images of the 900 other classes are classified, before training and after each task.
    The model itself stays as it is. The accuracy, in percent, joins the metrics of each evaluation
    as ``ImageNet900/top1``.

    Args:
        dataloader: Config of the loader of these images; its data set is a
            :class:`~mmgslora.datasets.FolderDataset` with one folder per class, named as the
            classes of the head are.
        required: Whether a missing folder is an error. Defaults to False: the check is left out,
            and the log says so.

    Raises:
        ForgettingError: The folder is missing and required, the model's head is no
            :class:`~mmgslora.models.ImageNetHead`, or a class folder is unknown to the head or
            one of those the model tells apart.
    """

    def __init__(self, dataloader: dict, required: bool = False) -> None:
        self.dataloader = dataloader
        self.required = required
        self._loader: DataLoader | None = None

    def before_train(self, runner) -> None:
        dataset = self.dataloader['dataset']
        folder = Path(dataset['data_root'], dataset.get('folder', ''))
        if not folder.is_dir():
            missing = f'The folder of the ImageNet900 check, {str(folder)!r}, does not exist'
            if self.required:
                raise ForgettingError(f'{missing}; put the images there, or leave the check out.')
            runner.logger.info(f'{missing}; the check is left out.')
            return
        model = runner.train_loop.model.plain_model
        head = getattr(model, 'head', None)  # a network of another library names its own
        if not isinstance(head, ImageNetHead):
            raise ForgettingError(
                f'The head is a {type(model.class_layer).__name__}; the ImageNet900 check needs '
                'an ImageNetHead, whose other rows it puts back.'
            )
        # Every image once, whatever the number of processes.
        sampler = dict(type='DefaultSampler', shuffle=False, round_up=False)
        self._loader = runner.build_dataloader({**self.dataloader, 'sampler': sampler})
        names = self._loader.dataset.metainfo['classes']
        self._rows = torch.tensor(head_rows(names, head.all_folder_names))
        known = [name for name, row in zip(names, self._rows.tolist()) if row in head.rows]
        if known:
            raise ForgettingError(
                f'Class folder {known[0]!r} of the ImageNet900 check is one of the '
                f'{len(head.rows)} classes of the model; the check is on the others.'
            )
        self._head = head.published_rows()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        self._join(runner, metrics)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        self._join(runner, metrics)

    @torch.no_grad()
    def _join(self, runner, metrics: dict) -> None:
        if self._loader is None:
            return
        model = runner.train_loop.model
        device = model.classifier_weight.device
        weight, bias, rows = (tensor.to(device) for tensor in (*self._head, self._rows))
        found = torch.zeros(2, dtype=torch.float64, device=device)  # right, all
        for batch in self._loader:
            batch = model.data_preprocessor(batch, False)
            labels = torch.stack([sample.gt_label for sample in batch['data_samples']]).to(device)
            logits = F.linear(model.plain_model.embed(batch['inputs']), weight, bias)
            found[0] += (logits.argmax(-1) == rows[labels]).sum()
            found[1] += len(labels)
        all_reduce(found)
        metrics['ImageNet900/top1'] = 100 * float(found[0] / found[1])
