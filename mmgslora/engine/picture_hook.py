"""Draws what the model saw before forgetting and what it sees now."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import Dataset

from mmgslora.report import draw_before_after, draw_labels
from mmgslora.report.png import drawing

_KEY = 'detections_before'
_TRIES = 5  # images asked about at most, for each that is drawn


@HOOKS.register_module()
class PictureHook(Hook):
    """Writes ``before_after.png`` after every task: the same images, then and now.

    They come from the split that the loop measures on, and are the first in which the pre-trained
    detector found (score of ``score_thr`` or more, IoU of .5 or more) an object of a class of the
    protocol to forget and one of a class that stays; where these are too few, the first that
    show both. What it found there is kept in the message hub, where a resumed run finds it.

    Args:
        num_images: How many images. Defaults to 6.
        score_thr: Score from which a detection is drawn. Defaults to 0.3.
    """

    priority = 'LOW'

    def __init__(self, num_images: int = 6, score_thr: float = 0.3) -> None:
        self.num_images = num_images
        self.score_thr = score_thr

    @master_only
    def before_forget_task(self, runner) -> None:
        if _KEY in runner.message_hub.runtime_info:
            return
        chosen = self._choose(runner)
        indices, found = list(chosen), list(chosen.values())
        runner.message_hub.update_info(_KEY, dict(indices=indices, found=found))

    @master_only
    def after_forget_task(self, runner, metrics: dict) -> None:
        before = runner.message_hub.get_info(_KEY)
        if before['indices']:
            after = [self._detect(runner, i) for i in before['indices']]
            with drawing(Path(runner.work_dir, 'before_after.png')):
                self._draw(runner, before['indices'], before['found'], after)

    def _draw(self, runner, indices: list[int], before: list[dict], after: list[dict]) -> None:
        loop, dataset = runner.train_loop, _dataset(runner)
        infos = [dataset.get_data_info(i) for i in indices]
        draw_before_after(
            images=[cv2.imread(info['img_path'])[..., ::-1] for info in infos],
            before=[_as_arrays(found) for found in before],
            after=[_as_arrays(found) for found in after],
            truth=[
                dict(
                    bboxes=np.array([item['bbox'] for item in info['instances']]).reshape(-1, 4),
                    labels=np.array([item['bbox_label'] for item in info['instances']], int),
                )
                for info in infos
            ],
            classes=loop.protocol.classes,
            forget=_asked_until_now(loop),
            path=Path(runner.work_dir, 'before_after.png'),
            score_thr=self.score_thr,
        )

    def _choose(self, runner) -> dict[int, dict]:
        """Indices of the images, with what the model finds there now."""
        protocol, dataset = runner.train_loop.protocol, _dataset(runner)
        asked = {protocol.classes.index(name) for task in protocol.tasks for name in task}
        gone = {protocol.classes.index(name) for name in protocol.forgotten}
        stay = set(range(len(protocol.classes))) - asked - gone
        seen: dict[int, dict] = {}
        good: list[int] = []
        for index in range(len(dataset)):
            instances = dataset.get_data_info(index)['instances']
            labels = {item['bbox_label'] for item in instances}
            if labels & asked and labels & stay:
                seen[index] = self._detect(runner, index)
                labels = _found_labels(seen[index], instances)
                if labels & asked and labels & stay:
                    good.append(index)
            # A detector that finds little must not be asked about the whole data set.
            if len(good) == self.num_images or len(seen) == _TRIES * self.num_images:
                break
        chosen = [*good, *(index for index in seen if index not in good)][: self.num_images]
        return {index: seen[index] for index in sorted(chosen)}

    def _predict(self, runner, index: int):
        """The data sample of one image with the model's predictions."""
        model = runner.train_loop.model
        model.eval()
        batch = pseudo_collate([_dataset(runner)[index]])
        with torch.no_grad():
            return model.test_step(batch)[0]

    def _detect(self, runner, index: int) -> dict[str, list]:
        found = self._predict(runner, index).pred_instances
        found = found[found.scores >= self.score_thr]
        return {key: found[key].tolist() for key in ('bboxes', 'scores', 'labels')}


@HOOKS.register_module()
class LabelPictureHook(PictureHook):
    """The same for classifiers: what each image was called before, and what now.

    Images are the first one of each class to forget and of each class that stays, in turn.

    Args:
        num_images: How many images. Defaults to 12.
    """

    def __init__(self, num_images: int = 12) -> None:
        super().__init__(num_images, score_thr=0.0)

    def _choose(self, runner) -> dict[int, dict]:
        protocol, dataset = runner.train_loop.protocol, _dataset(runner)
        asked = [protocol.classes.index(name) for task in protocol.tasks for name in task]
        stay = [label for label in range(len(protocol.classes)) if label not in asked]
        first: dict[int, int] = {}
        for index in range(len(dataset)):
            first.setdefault(int(dataset.get_data_info(index)['gt_label']), index)
        in_turn = [label for pair in zip_longest(asked, stay) for label in pair]
        chosen = [first[label] for label in in_turn if label in first][: self.num_images]
        return {index: self._detect(runner, index) for index in chosen}

    def _detect(self, runner, index: int) -> dict[str, float]:
        scores = self._predict(runner, index).pred_scores
        return dict(label=int(scores.argmax()), score=float(scores.max()))

    def _draw(self, runner, indices: list[int], before: list[dict], after: list[dict]) -> None:
        loop, dataset = runner.train_loop, _dataset(runner)
        infos = [dataset.get_data_info(i) for i in indices]
        draw_labels(
            images=[cv2.imread(info['img_path'])[..., ::-1] for info in infos],
            truth=[int(info['gt_label']) for info in infos],
            before=before,
            after=after,
            classes=loop.protocol.classes,
            forget=_asked_until_now(loop),
            path=Path(runner.work_dir, 'before_after.png'),
        )


def _dataset(runner) -> Dataset:
    """The data set that the run's numbers are measured on."""
    return runner.train_loop.evaluation_loop.dataloader.dataset


def _found_labels(found: dict[str, list], instances: list[dict]) -> set[int]:
    """Labels of the objects that a detection of their class covers with IoU >= .5."""
    boxes = _as_arrays(found)['bboxes']
    truth = np.array([item['bbox'] for item in instances], float).reshape(-1, 4)
    overlaps = bbox_overlaps(torch.from_numpy(truth), torch.from_numpy(boxes)).numpy()
    return {
        item['bbox_label']
        for item, row in zip(instances, overlaps)
        if any(iou >= 0.5 and item['bbox_label'] == x for iou, x in zip(row, found['labels']))
    }


def _asked_until_now(loop) -> list[str]:
    return [name for task in loop.protocol.tasks[: loop.task] for name in task]


def _as_arrays(found: dict[str, list]) -> dict[str, np.ndarray]:
    return dict(
        bboxes=np.array(found['bboxes'], float).reshape(-1, 4),
        scores=np.array(found['scores'], float),
        labels=np.array(found['labels'], int),
    )
