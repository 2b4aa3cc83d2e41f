"""COCO AP once per class, then grouped by what is forgotten, retained, old and missing."""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from copy import copy
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation.metrics import CocoMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.evaluation.grouping import group_by_partition
from mmgslora.evaluation.pretrained import pretrained_values, published_tasks
from mmgslora.families.detector.every_query import match_every_query

_ORDERS = 3
"""Random orders that are drawn."""


@METRICS.register_module()
class ForgettingCocoMetric(CocoMetric):
    """AP and recall of forgotten, retained, old and missing classes, all in percent.

    Which class is what now comes from :meth:`ClassPartition.current`. A class that must be gone,
    now or since an earlier task, is measured with every query of the detector in the ranking,
    whatever ``max_per_img`` says and without COCO's limit of 100 (:func:`match_every_query`):
    with a limit the last places of a forgotten class depend on how many other classes fill them.
    Every other number is plain COCO's. It returns

    - ``per_class/<name>``: AP@[.5:.95] (area all), for classes with ground truth; every query for
      classes that must be gone, 100 listed detections for the others.
    - ``mAP``: the mean over all classes of the plain COCO AP.

    and, where a partition is published,

    - ``AP_f, AP_r, AP_o, AP_m, Drop, H``: see :func:`group_by_partition`. AP_f, AP_o, Drop and H
      count every query.
    - ``coco/AP_f, coco/AP_o, coco/Drop, coco/H, coco/per_class/<name>``: the same of the listed
      detections, plain COCO, for the classes that must be gone.
    - ``random/AP_f``: AP_f of the same queries in a random order, the mean of three. It is about
      the share of queries that lie on an object of the class, so a class that is everywhere has
      much of it, and an AP_f below it says nothing. ``random/per_class/<name>``: the highest of
      the three, for a class of few objects may be lucky. Of the tasks of a run alone, not of the
      model before them or within an audit.
    - ``AP_f``, ... under ``paper/``, as the authors' detection code evaluates: listed detections,
      and a class is measured only on images with at least one box (crowds too) of its group, so
      that false positives elsewhere do not count. Not comparable with COCO AP.
    - ``AR_f@0.3``, ... (f, r, o, m): share of the group's objects, crowds excluded, that a
      detection of their class with at least this score covers with IoU >= .5; f and o count every
      query. AP is a ranking and can stay high when all scores are tiny; this cannot.

    Drop and H need the pre-trained model's values in the message hub: before its evaluation
    :func:`publish_tasks`, afterwards :func:`remember_pretrained`. In that one evaluation
    ``per_class/<name>`` is plain COCO's for all classes, and it also returns, for the classes of
    all published tasks, ``every_query/per_class/<name>`` and ``paper/per_class/<name>``, the
    latter on the images of the task that will forget the class. Drop and H are left out under
    ``paper/`` for a task that was not published then.

    What every query says comes with the data samples of a
    :class:`~mmgslora.families.ForgettingDetector` (``every_query``). Where it is missing, as in a
    result file of MMDetection's tools/test.py, the listed detections stand in, with a warning.

    Args:
        ann_file: COCO annotation file. Defaults to None: ground truth from the data set.
        recall_scores: Score thresholds of the recall. Defaults to (0.3, 0.05): a working
            threshold and a very low one.
        **kwargs: As for CocoMetric; ``classwise``, ``proposal_nums``, ``metric_items`` and
            ``use_mp_eval`` have no effect.

    Raises:
        ForgettingError: ``metric`` is not 'bbox', or ``iou_thrs`` is given; or, in use, there is
            neither ``ann_file`` nor ``instances`` in the data samples.
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
            if self._coco_api is not None:
                _as_evaluated(self._coco_api)
        if self.metrics != ['bbox']:
            raise ForgettingError(f"metric is {self.metrics}; only 'bbox' is measured.")
        self.recall_scores = tuple(recall_scores)

    def process(self, data_batch: dict | None, data_samples: Sequence[dict]) -> None:
        """Keep of every image what CocoMetric keeps, and what every query says if it is known."""
        if self._coco_api is None and any('instances' not in sample for sample in data_samples):
            raise ForgettingError(
                'The data to measure on do not say where their objects are; give the evaluator an '
                "ann_file in COCO's format, or name 'instances' among the meta_keys of their "
                "pipeline's PackDetInputs."
            )
        super().process(data_batch, data_samples)
        for (_, result), sample in zip(self.results[-len(data_samples) :], data_samples):
            if 'every_query' in sample:
                every = sample['every_query']
                result['every_query'] = dict(
                    labels=tuple(every['labels']),
                    bboxes=every['bboxes'].float().cpu().numpy(),
                    scores=every['scores'].float().cpu().numpy(),
                )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Match the detections, then read off every number of the class description."""
        if self.format_only:
            return super().compute_metrics(results)
        coco_eval = self._match(results)
        usual = self._class_ap(coco_eval, coco_eval.evalImgs)
        found_with = self._found_with(coco_eval)
        said = self._said(results)
        every, found_by_any = self._every_query(coco_eval, said)
        metrics: dict[str, float] = {}
        partition = ClassPartition.current()
        per_class = usual
        if partition is not None:
            gone = [name for name in partition.forget + partition.old if name in usual]
            self._warn_of_a_limit([name for name in gone if name not in every])
            strict = {name: every[name] for name in gone if name in every}
            per_class = {**usual, **strict}
            found_with.update({name: found_by_any[name] for name in strict})
            metrics.update(self._groups(per_class, usual, partition))
            metrics.update({f'coco/per_class/{name}': usual[name] for name in gone})
            metrics.update(self._recalls(found_with, partition))
            forgotten = [name for name in partition.forget if name in strict]
            if self._pretrained('') is not None:
                metrics.update(self._in_random_order(coco_eval, said, forgotten))
            metrics.update(self._paper_metrics(coco_eval, partition))
        if self._pretrained('') is None and published_tasks():
            per_class = usual
            for name, ap in every.items():
                metrics[f'every_query/per_class/{name}'] = ap
            for name, ap in self._paper_ap(coco_eval, published_tasks()).items():
                metrics[f'paper/per_class/{name}'] = ap
        if usual:
            metrics['mAP'] = fmean(usual.values())
        return {**metrics, **{f'per_class/{name}': ap for name, ap in per_class.items()}}

    def _groups(
        self, per_class: dict[str, float], usual: dict[str, float], partition: ClassPartition
    ) -> dict[str, float]:
        before = before_usual = self._pretrained('per_class/')
        if before is not None:
            before = {**before, **self._pretrained('every_query/per_class/')}
        metrics = group_by_partition(per_class, partition, before)
        listed = group_by_partition(usual, partition, before_usual)
        for key in ('AP_f', 'AP_o', 'Drop', 'H'):
            if key in listed:
                metrics[f'coco/{key}'] = listed[key]
        return metrics

    def _said(self, results: list) -> dict[str, dict]:
        """Of each class that every image says all about: boxes and scores by image."""
        known = [pred.get('every_query') for _, pred in results]
        if None in known or not known:
            return {}
        ids = [pred['img_id'] for _, pred in results]
        return {
            self._name(self.cat_ids[label]): {
                i: (each['bboxes'], each['scores'][:, column]) for i, each in zip(ids, known)
            }
            for column, label in enumerate(known[0]['labels'])
        }

    def _every_query(
        self, coco_eval: COCOeval, said: dict[str, dict]
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """AP and :meth:`_found_with` of each class that is :meth:`_said`."""
        per_class, found_with = {}, {}
        for name, found in said.items():
            ranked = match_every_query(coco_eval, self._id(name), found)
            per_class.update(self._class_ap(ranked, ranked.evalImgs))
            found_with.update(self._found_with(ranked))
        return per_class, found_with

    def _in_random_order(
        self, coco_eval: COCOeval, said: dict[str, dict], names: Sequence[str]
    ) -> dict[str, float]:
        """The mean AP of these classes for a ranking that knows nothing, and the most of each."""
        aps: dict[str, list[float]] = {name: [] for name in names}
        for name, of_it in aps.items():
            for seed in range(_ORDERS):
                draw = np.random.default_rng(seed).random
                drawn = {i: (boxes, 1 - draw(len(boxes))) for i, (boxes, _) in said[name].items()}
                ranked = match_every_query(coco_eval, self._id(name), drawn)
                of_it.append(self._class_ap(ranked, ranked.evalImgs)[name])
        most = {f'random/per_class/{name}': max(of_it) for name, of_it in aps.items()}
        return {'random/AP_f': fmean(map(fmean, aps.values())), **most} if aps else {}

    def _warn_of_a_limit(self, names: Sequence[str]) -> None:
        if names:
            print_log(
                f'AP_f, AP_o and their recalls of {", ".join(names)} are of the listed detections '
                'alone, which depend on max_per_img: the predictions do not say what every query '
                'made of these classes.',
                logger='current',
                level=logging.WARNING,
            )

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
            if self.outfile_prefix:
                self.results2json(preds, outfile_prefix)
            boxes = self._listed(preds)
            # loadRes cannot load an empty list.
            coco_eval = COCOeval(coco, coco.loadRes(boxes) if boxes else COCO(), 'bbox')
            params = coco_eval.params
            params.catIds, params.imgIds = self.cat_ids, self.img_ids
            params.maxDets = [100]
            params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
            coco_eval.evaluate()
        return coco_eval

    def _listed(self, preds: Sequence[dict]) -> list[dict]:
        """The detections as COCO has them; what CocoMetric reads back from the file it writes."""
        listed = []
        for pred in preds:
            boxes = pred['bboxes'].astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            ids = [self.cat_ids[label] for label in pred['labels']]
            listed += [
                dict(image_id=pred['img_id'], bbox=box, score=score, category_id=cat_id)
                for box, score, cat_id in zip(boxes.tolist(), pred['scores'].tolist(), ids)
            ]
        return listed

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
        per_class = self._paper_ap(coco_eval, partition.groups().values())
        # The pre-trained values hold for the images of the tasks published with them only.
        known = set(partition.forget) in map(set, published_tasks())
        pretrained = self._pretrained('paper/per_class/') if known else None
        grouped = group_by_partition(per_class, partition, pretrained)
        return {f'paper/{key}': value for key, value in grouped.items()}

    def _found_with(self, coco_eval: COCOeval) -> dict[str, list[float]]:
        """By class the highest score with which each object is found; -inf where it is not."""
        found_with = defaultdict(list)
        for match in coco_eval.evalImgs:
            if match is None or not len(match['gtIgnore']):
                continue
            score_of = dict(zip(match['dtIds'], match['dtScores']))
            # Row 0 is IoU .5; detections choose in the order of their score, so those below a
            # threshold take nothing from those above it. Id 0 stands for "not found".
            found_with[self._name(match['category_id'])] += [
                score_of.get(detection, float('-inf'))
                for detection, ignored in zip(match['gtMatches'][0], match['gtIgnore'])
                if not ignored
            ]
        return dict(found_with)

    def _recalls(
        self, found_with: dict[str, list[float]], partition: ClassPartition
    ) -> dict[str, float]:
        """Percent of each group's objects that are found with at least each score."""
        recalls = {}
        for letter, names in partition.groups().items():
            scores = [score for name in names for score in found_with.get(name, ())]
            for threshold in self.recall_scores if scores else ():
                found = sum(score >= threshold for score in scores)
                recalls[f'AR_{letter}@{threshold:g}'] = 100 * found / len(scores)
        return recalls

    def _pretrained(self, keys: str) -> dict[str, float] | None:
        return pretrained_values(f'{self.prefix}/{keys}' if self.prefix else keys)

    def _id(self, name: str) -> int:
        (cat_id,) = self._coco_api.get_cat_ids(cat_names=[name])
        return cat_id

    def _name(self, cat_id: int) -> str:
        return self._coco_api.cats[cat_id]['name']


def _as_evaluated(coco: COCO) -> None:
    """Give boxes the ids and keys that COCOeval needs: to it the id 0 means "not found"."""
    for number, box in enumerate(coco.dataset['annotations'], 1):
        box['id'] = number
        box.setdefault('iscrowd', 0)
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
