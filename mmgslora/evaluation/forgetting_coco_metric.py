"""COCO AP once per class, then grouped by what is forgotten, retained, old and missing."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from copy import copy
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation.metrics import CocoMetric
from mmengine.fileio import load
from mmengine.registry import METRICS

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.evaluation.grouping import class_groups, group_by_partition
from mmgslora.evaluation.pretrained import pretrained_values, published_tasks


@METRICS.register_module()
class ForgettingCocoMetric(CocoMetric):
    """AP and recall of forgotten, retained, old and missing classes, all in percent.

    Detections are matched once, by pycocotools on the whole set; every number is read off that.
    Which class is what now comes from :meth:`ClassPartition.current`. It returns

    - ``per_class/<name>``: AP@[.5:.95] (area all, 100 detections), for classes with ground truth;
      ``mAP``: their mean.

    and, where a partition is published,

    - ``AP_f, AP_r, AP_o, AP_m, Drop, H``: see :func:`group_by_partition`. Whole set, plain COCO.
    - the same under ``paper/``, as the authors' detection code evaluates: a class is measured
      only on images with at least one box (crowds too) of its group, so that false positives
      elsewhere do not count. Not comparable with COCO AP.
    - ``AR_f@0.3``, ... (f, r, o, m): share of the group's objects, crowds excluded, that a
      detection of their class with at least this score covers with IoU >= .5. AP is a ranking and
      can stay high when all scores are tiny; this cannot.

    Drop and H need the pre-trained model's values in the message hub: before its evaluation
    :func:`publish_tasks`, afterwards :func:`remember_pretrained`. That one evaluation also returns
    ``paper/per_class/<name>``, on the images of the task that will forget the class. Drop and H
    are left out under ``paper/`` for a task that was not published then.

    Args:
        ann_file: COCO annotation file. Defaults to None: ground truth from the data set.
        recall_scores: Score thresholds of the recall. Defaults to (0.3, 0.05): a working
            threshold and a very low one.
        **kwargs: As for CocoMetric; ``classwise``, ``proposal_nums``, ``metric_items`` and
            ``use_mp_eval`` have no effect.

    Raises:
        ForgettingError: ``metric`` is not 'bbox', or ``iou_thrs`` is given.
    """

    # Not None, for which MMEngine would warn; the keys get no prefix either way.
    default_prefix = ''

    def __init__(
        self,
        ann_file: str | None = None,
        recall_scores: Sequence[float] = (0.3, 0.05),
        **kwargs,
    ) -> None:
        if kwargs.get('iou_thrs') is not None:
            raise ForgettingError(
                f'iou_thrs is {kwargs["iou_thrs"]}; leave it out: AP is at IoU .5 to .95, recall '
                'at .5.'
            )
        with redirect_stdout(io.StringIO()):
            super().__init__(ann_file, **kwargs)
        if self.metrics != ['bbox']:
            raise ForgettingError(f"metric is {self.metrics}; only 'bbox' is measured.")
        self.recall_scores = tuple(recall_scores)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Match the detections, then read off every number of the class description."""
        if self.format_only:
            return super().compute_metrics(results)
        coco_eval = self._match(results)
        per_class = self._class_ap(coco_eval, coco_eval.evalImgs)
        partition = ClassPartition.current()
        metrics: dict[str, float] = {}
        if partition is not None:
            metrics.update(group_by_partition(per_class, partition, self._pretrained('per_class/')))
            metrics.update(self._recalls(coco_eval, partition))
            metrics.update(self._paper_metrics(coco_eval, partition))
        if self._pretrained('') is None:
            for name, ap in self._paper_ap(coco_eval, published_tasks()).items():
                metrics[f'paper/per_class/{name}'] = ap
        if per_class:
            metrics['mAP'] = fmean(per_class.values())
        return {**metrics, **{f'per_class/{name}': ap for name, ap in per_class.items()}}

    def _match(self, results: list) -> COCOeval:
        """Match detections with ground truth, per image and class, as CocoMetric does."""
        gts, preds = zip(*results)
        with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            outfile_prefix = self.outfile_prefix or str(Path(folder) / 'results')
            if self._coco_api is None:
                self._coco_api = COCO(self.gt_to_coco_json(gts, outfile_prefix))
            coco = self._coco_api
            self.cat_ids = coco.get_cat_ids(cat_names=self.dataset_meta['classes'])
            self.img_ids = coco.get_img_ids()
            boxes = load(self.results2json(preds, outfile_prefix)['bbox'])
            # loadRes cannot load an empty list.
            coco_eval = COCOeval(coco, coco.loadRes(boxes) if boxes else COCO(), 'bbox')
            params = coco_eval.params
            params.catIds, params.imgIds = self.cat_ids, self.img_ids
            params.maxDets = [100]
            params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
            coco_eval.evaluate()
        return coco_eval

    def _class_ap(self, coco_eval: COCOeval, matches: list[dict | None]) -> dict[str, float]:
        """AP per class from these of COCOeval's matches (``evalImgs``, None where left out)."""
        coco_eval = copy(coco_eval)  # the caller's keeps all of its matches
        coco_eval.evalImgs = matches
        with redirect_stdout(io.StringIO()):
            coco_eval.accumulate()
        # (IoU, recall, class); evaluate() sorted the ids, so self.cat_ids may be in another order.
        precision = coco_eval.eval['precision'][..., 0, 0]
        return {
            self._name(cat_id): 100 * float(precision[..., k].mean())
            for k, cat_id in enumerate(coco_eval.params.catIds)
            if precision[0, 0, k] >= 0  # -1 marks a class without ground truth
        }

    def _paper_ap(self, coco_eval: COCOeval, groups: Iterable[Sequence[str]]) -> dict[str, float]:
        """AP of each class of the groups, on the images with a box of its group."""
        images_of: dict[int, set] = {}
        for group in groups:
            ids = [cat_id for cat_id in self.cat_ids if self._name(cat_id) in group]
            images = {image for cat_id in ids for image in self._coco_api.cat_img_map[cat_id]}
            images_of.update(dict.fromkeys(ids, images))
        return self._class_ap(
            coco_eval,
            [
                m if m and m['image_id'] in images_of.get(m['category_id'], ()) else None
                for m in coco_eval.evalImgs
            ],
        )

    def _paper_metrics(self, coco_eval: COCOeval, partition: ClassPartition) -> dict[str, float]:
        per_class = self._paper_ap(coco_eval, class_groups(partition).values())
        # The pre-trained values hold for the images of the tasks published with them only.
        known = set(partition.forget) in map(set, published_tasks())
        pretrained = self._pretrained('paper/per_class/') if known else None
        grouped = group_by_partition(per_class, partition, pretrained)
        return {f'paper/{key}': value for key, value in grouped.items()}

    def _recalls(self, coco_eval: COCOeval, partition: ClassPartition) -> dict[str, float]:
        """Percent of each group's objects that are found with at least each score."""
        found_with = defaultdict(list)
        for match in filter(None, coco_eval.evalImgs):
            score_of = dict(zip(match['dtIds'], match['dtScores']))
            # Row 0 is IoU .5; detections choose in the order of their score, so those below a
            # threshold take nothing from those above it. Id 0 stands for "not found".
            found_with[self._name(match['category_id'])] += [
                score_of.get(detection, float('-inf'))
                for detection, ignored in zip(match['gtMatches'][0], match['gtIgnore'])
                if not ignored
            ]
        recalls = {}
        for letter, names in class_groups(partition).items():
            scores = [score for name in names for score in found_with[name]]
            for threshold in self.recall_scores if scores else ():
                found = sum(score >= threshold for score in scores)
                recalls[f'AR_{letter}@{threshold:g}'] = 100 * found / len(scores)
        return recalls

    def _pretrained(self, keys: str) -> dict[str, float] | None:
        return pretrained_values(f'{self.prefix}/{keys}' if self.prefix else keys)

    def _name(self, cat_id: int) -> str:
        return self._coco_api.cats[cat_id]['name']
