"""AP with every query of a detector in the ranking, for the classes that must be gone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy

import numpy as np
from mmdet.datasets.api_wrappers import COCOeval
from pycocotools import mask


def match_every_query(
    coco_eval: COCOeval, cat_id: int, found: Mapping[int | str, tuple[np.ndarray, np.ndarray]]
) -> COCOeval:
    """Match the detections of one class without any limit on their number (ours).

    COCO's own matching (:meth:`COCOeval.evaluateImg`), but an image keeps all its detections.
    Images without ground truth of the class only add false detections, which need no matching; of
    these, the ones ranked below the last match cannot change any precision and are left out.

    Args:
        coco_eval: After ``evaluate()`` with the area range 'all' alone; gives images, ground truth
            and IoU thresholds. It is not changed.
        cat_id: Category id of the class.
        found: By image id the boxes (q, 4), x1 y1 x2 y2 in pixels of the original image, and the
            scores (q,) of the class. A score of exactly 0 is no detection.

    Returns:
        COCOeval: One ready for ``accumulate()``, of this class alone.
    """
    ranked = copy(coco_eval)
    params = ranked.params = ranked._paramsEval = copy(coco_eval.params)
    params.catIds = [cat_id]
    params.maxDets = [max((len(scores) for _, scores in found.values()), default=1)]
    ranked._dts, ranked.ious = {}, {}
    matches = {i: _match(ranked, i, cat_id, *found.get(i, _NOTHING)) for i in _holding(ranked)}
    matched = [
        match['dtScores'][i]
        for match in matches.values()
        for i in np.flatnonzero(match['dtMatches'].any(0))
    ]
    lowest = min(matched, default=math.inf)
    for image in params.imgIds:
        if image not in matches and image in found:
            scores = found[image][1]
            matches[image] = _all_false(scores[(scores > 0) & (scores >= lowest)], ranked)
    ranked.evalImgs = [matches.get(image) for image in params.imgIds]
    return ranked


_NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def _holding(coco_eval: COCOeval) -> list:
    """Ids of the images with a box of the class, crowds too."""
    params = coco_eval.params
    return [image for image in params.imgIds if coco_eval._gts.get((image, params.catIds[0]))]


def _match(
    coco_eval: COCOeval, image: int | str, cat_id: int, boxes: np.ndarray, scores: np.ndarray
) -> dict:
    """What :meth:`COCOeval.evaluateImg` says of one image with all its detections.

    It takes them one by one, for every threshold. Nearly all of many queries overlap no object
    enough for the lowest threshold: they take no object from another, and need not be asked about.
    """
    params, objects = coco_eval.params, coco_eval._gts[image, cat_id]
    rows = np.flatnonzero(scores > 0)
    rows = rows[np.argsort(-scores[rows], kind='mergesort')]  # COCO's own order of ties
    boxes, scores = boxes[rows].astype(np.float64), scores[rows].tolist()
    boxes[:, 2:] -= boxes[:, :2]
    areas = boxes[:, 2] * boxes[:, 3]
    truth = np.array([one['bbox'] for one in objects], np.float64)
    ious = mask.iou(boxes, truth, [int(one['iscrowd']) for one in objects])
    ious = np.reshape(ious, (len(rows), len(objects)))
    near = np.flatnonzero(~(ious < params.iouThrs.min()).all(1))
    coco_eval._dts[image, cat_id] = [
        dict(id=int(rows[i]) + 1, score=scores[i], area=areas[i]) for i in near
    ]
    coco_eval.ious[image, cat_id] = ious[near]
    smallest, largest = params.areaRng[0]
    match = coco_eval.evaluateImg(image, cat_id, params.areaRng[0], params.maxDets[-1])
    matches = np.zeros((len(params.iouThrs), len(rows)))
    ignored = np.tile((areas < smallest) | (areas > largest), (len(params.iouThrs), 1))
    matches[:, near], ignored[:, near] = match['dtMatches'], match['dtIgnore']
    every = dict(dtIds=(rows + 1).tolist(), dtScores=scores, dtMatches=matches, dtIgnore=ignored)
    return {**match, **every}


def _all_false(scores: np.ndarray, coco_eval: COCOeval) -> dict:
    none = np.zeros((len(coco_eval.params.iouThrs), len(scores)), dtype=bool)
    return dict(dtScores=scores, dtMatches=none, dtIgnore=none, gtIgnore=np.zeros(0, dtype=bool))
