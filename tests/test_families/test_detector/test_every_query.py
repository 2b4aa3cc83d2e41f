"""The strict AP against plain pycocotools without any limit, and against free slots."""

import io
import json
import logging
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MessageHub, MMLogger
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.evaluation import publish_tasks, remember_pretrained
from mmgslora.families.detector import ForgettingCocoMetric
from mmgslora.families.detector.every_query import match_every_query

CLASSES = ('cat', 'dog', 'cup')
DOG_GOES = ClassPartition(1, forget=('dog',), retain=('cup',), old=('cat',), classes=CLASSES)


@pytest.fixture(autouse=True)
def hub(request):
    """A message hub of the test's own, without pre-trained values."""
    return MessageHub.get_instance(f'every query {request.node.name}')


def scene(seed, images=8, queries=20, tied=False):
    """Truth with crowds, and per image boxes (q, 4) and scores (q, 3), some exactly 0."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        corner = rng.uniform(0, 60, (rng.integers(0, 5), 2))
        true = np.concatenate([corner, corner + rng.uniform(10, 40, corner.shape)], 1)
        labels, crowd = rng.integers(0, 3, len(true)), rng.random(len(true)) < 0.15
        truth.append((true, labels, crowd))
        boxes = rng.uniform(0, 60, (queries, 2))
        boxes = np.concatenate([boxes, boxes + rng.uniform(10, 40, boxes.shape)], 1)
        for i in range(min(len(true), queries)):
            boxes[i] = true[i] + rng.normal(0, 2.5, 4)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)  # COCO ignores negative areas
        scores = rng.random((queries, 3)) ** 8
        if tied:
            scores = np.round(scores, 1)
        found.append((boxes.astype(np.float32), scores.astype(np.float32)))
    return truth, found


def annotations(truth):
    items = [
        dict(
            image_id=image,
            category_id=int(label) + 1,
            bbox=[*box[:2], *(box[2:] - box[:2])],
            area=float(np.prod(box[2:] - box[:2])),
            iscrowd=int(is_crowd),
        )
        for image, (boxes, labels, crowd) in enumerate(truth)
        for box, label, is_crowd in zip(boxes, labels, crowd)
    ]
    for number, item in enumerate(items, 1):
        item['id'] = number
    return dict(
        images=[dict(id=i, width=100, height=100, file_name='') for i in range(len(truth))],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
        annotations=items,
    )


def samples(found, max_per_img):
    """What the detector gives: its best detections of all classes, and every query's scores."""
    given = []
    for image, (boxes, scores) in enumerate(found):
        best, index = torch.from_numpy(scores).flatten().topk(min(max_per_img, scores.size))
        boxes = torch.from_numpy(boxes)
        given.append(
            dict(
                img_id=image,
                ori_shape=(100, 100),
                pred_instances=dict(bboxes=boxes[index // 3], scores=best, labels=index % 3),
                every_query=dict(
                    labels=[1, 0], bboxes=boxes, scores=torch.from_numpy(scores)[:, [1, 0]]
                ),
            )
        )
    return given


def measure(folder, truth, given):
    file = folder / 'truth.json'
    file.write_text(json.dumps(annotations(truth), default=float))
    metric = ForgettingCocoMetric(ann_file=str(file))
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, given)
    return metric.evaluate(len(given))


def detections_of(found):
    return [
        dict(
            image_id=image,
            category_id=label + 1,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            score=float(scores[query, label]),
        )
        for image, (boxes, scores) in enumerate(found)
        for query, (x1, y1, x2, y2) in enumerate(boxes.tolist())
        for label in range(3)
        if scores[query, label] > 0
    ]


def without_a_limit(truth, found):
    """(AP, recall at IoU .5) of each class by plain pycocotools with all detections, in percent."""
    detections = detections_of(found)
    values = {}
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = annotations(truth)
        coco.createIndex()
        for label, name in enumerate(CLASSES):
            evaluation = COCOeval(coco, coco.loadRes(detections), 'bbox')
            evaluation.params.catIds = [label + 1]
            evaluation.params.maxDets = [1, 10, 10**6]
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval['precision'][:, :, 0, 0, 2]
            if (precision > -1).any():
                recall = evaluation.eval['recall'][0, 0, 0, 2]
                values[name] = (100 * precision.mean(), 100 * recall)
    return values


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), queries=st.sampled_from([1, 7, 40, 130]), tied=st.booleans())
def test_equals_pycocotools_without_a_limit(tmp_path_factory, seed, queries, tied):
    truth, found = scene(seed, queries=queries, tied=tied)
    expected = without_a_limit(truth, found)
    DOG_GOES.publish()
    metrics = measure(tmp_path_factory.mktemp('random'), truth, samples(found, 10))
    for name, key in (('dog', 'AP_f'), ('cat', 'AP_o')):
        if name in expected:
            assert metrics[key] == metrics[f'per_class/{name}']
            assert metrics[key] == pytest.approx(expected[name][0], abs=1e-9)
        else:
            assert key not in metrics


def test_matches_are_those_of_pycocotools():
    """Of each image, boxes of negative area too; only queries near an object are asked about."""
    truth, found = scene(9, images=20, queries=60, tied=True)
    for boxes, _ in found:
        boxes[::9, 2] = boxes[::9, 0] - 1  # ignored as outside of the area range
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = annotations(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections_of(found)), 'bbox')
        evaluation.params.catIds, evaluation.params.maxDets = [2], [10**6]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.evaluate()
    asked = []

    class Counting(COCOeval):
        def evaluateImg(self, image, category, *args):  # noqa: N802
            asked.append(len(self._dts[image, category]))
            return super().evaluateImg(image, category, *args)

    expected, evaluation.__class__ = evaluation.evalImgs, Counting
    ranked = match_every_query(
        evaluation, 2, {i: (boxes, scores[:, 1]) for i, (boxes, scores) in enumerate(found)}
    )
    pairs = [pair for pair in zip(ranked.evalImgs, expected) if len(pair[1]['gtIds'])]
    assert len(pairs) == len(asked) > 5
    for ours, theirs in pairs:
        for key in ('dtScores', 'gtIds', 'gtIgnore', 'dtMatches', 'dtIgnore'):
            assert np.array_equal(ours[key], theirs[key]), key
        assert np.array_equal(_places(ours), _places(theirs))
    all_queries = sum(len(theirs['dtIds']) for _, theirs in pairs)
    assert 0 < sum(asked) < all_queries / 3
    assert any(theirs['dtIgnore'].any() and theirs['dtMatches'].any() for _, theirs in pairs)


def _places(match):
    """Which detection took each object, by its place in the ranking; -1 for none."""
    ids = list(match['dtIds'])
    return [[ids.index(x) if x else -1 for x in row] for row in match['gtMatches']]


def test_free_slots_do_not_matter(tmp_path):
    """AP_f and AP_o are the same for every max_per_img; plain COCO's are not."""
    truth, found = scene(5, images=30, queries=25)
    DOG_GOES.publish()
    few, all_slots = (measure(tmp_path, truth, samples(found, n)) for n in (10, 75))
    strict = ('AP_f', 'AP_o', 'per_class/dog', 'per_class/cat', 'AR_f@0.05', 'AR_o@0.3')
    assert all(few[key] == all_slots[key] for key in strict)
    assert few['coco/AP_f'] < all_slots['coco/AP_f'] - 0.5
    # With a slot for every query of every class both ways see the same (25 < 100 detections).
    for key in ('AP_f', 'AP_o', 'per_class/dog'):
        assert all_slots[key] == pytest.approx(all_slots[f'coco/{key}'], abs=1e-9)
    # The classes that stay are measured as COCO does, on the listed detections.
    assert few['AP_r'] != all_slots['AP_r']
    assert all_slots['AP_r'] == pytest.approx(without_a_limit(truth, found)['cup'][0], abs=1e-9)


def test_recall_counts_every_query(tmp_path):
    """One dog, found at 0.4 by a query that loses both slots to cups."""
    truth = [(np.array([[10.0, 10, 40, 40]]), np.array([1]), np.array([False]))]
    boxes = np.array([[10, 10, 40, 40], [60, 60, 90, 90], [50, 50, 90, 90]], np.float32)
    scores = np.array([[0, 0.4, 0], [0, 0, 0.9], [0, 0, 0.8]], np.float32)
    DOG_GOES.publish()
    metrics = measure(tmp_path, truth, samples([(boxes, scores)], 2))
    assert (metrics['AP_f'], metrics['AR_f@0.3']) == (pytest.approx(100), 100)
    assert (metrics['coco/AP_f'], metrics['coco/per_class/dog']) == (0, 0)


def test_a_score_of_zero_is_no_detection(tmp_path):
    """Perfect boxes and free slots, but the class's score is exactly 0, as when it is sealed."""
    truth, found = scene(6, images=10)
    for (true, _, _), (boxes, scores) in zip(truth, found):
        boxes[: len(true)] = true
        scores[:, 1] = 0
    DOG_GOES.publish()
    metrics = measure(tmp_path, truth, samples(found, 60))
    assert (metrics['AP_f'], metrics['AR_f@0.05']) == (0, 0)
    assert metrics['coco/AP_f'] > 0  # plain COCO ranks a score of 0


def test_a_ranking_that_knows_nothing(tmp_path):
    """One of eight queries lies on the dog of each image: the share of them is the precision."""
    boxes = np.array([[10, 10, 40, 40]] + [[60, 60, 90, 90]] * 7, np.float32)
    truth = [(boxes[:1].astype(float), np.array([1]), np.array([False]))] * 200
    scores = np.zeros((8, 3), np.float32)
    scores[0, 1] = 0.9
    DOG_GOES.publish()
    before = measure(tmp_path, truth, samples([(boxes, scores)] * 200, 24))
    assert 'random/AP_f' not in before  # no task was measured
    remember_pretrained(before)
    metrics = measure(tmp_path, truth, samples([(boxes, scores)] * 200, 24))
    assert metrics['AP_f'] == pytest.approx(100)
    assert 12 < metrics['random/AP_f'] < 15  # 1 / 8; the best of what comes later adds a little
    # The one class that goes, in the luckiest of the orders whose mean that is.
    assert metrics['random/AP_f'] < metrics['random/per_class/dog'] < 16


def test_drop_is_strict_minus_strict(tmp_path):
    truth, found = scene(7, images=30)
    publish_tasks([['dog'], ['cat']])
    DOG_GOES.publish()
    before = measure(tmp_path, truth, samples(found, 6))
    expected = without_a_limit(truth, found)
    for name in ('dog', 'cat'):
        assert before[f'every_query/per_class/{name}'] == pytest.approx(expected[name][0])
        assert before[f'per_class/{name}'] == before[f'coco/per_class/{name}']
        assert before[f'per_class/{name}'] != before[f'every_query/per_class/{name}']
    remember_pretrained(before)
    weaker = [(boxes, scores * np.float32([1, 0.3, 1])) for boxes, scores in found]
    after = measure(tmp_path, truth, samples(weaker, 6))
    assert after['Drop'] == pytest.approx(
        before['every_query/per_class/dog'] - after['AP_f'], abs=1e-9
    )
    assert after['coco/Drop'] == pytest.approx(before['per_class/dog'] - after['coco/AP_f'])
    assert not [key for key in after if key.startswith('every_query/')]


def test_listed_detections_stand_in_with_a_warning(tmp_path):
    truth, found = scene(8, images=20)
    DOG_GOES.publish()
    listed = [{k: v for k, v in s.items() if k != 'every_query'} for s in samples(found, 10)]
    heard = logging.StreamHandler(io.StringIO())
    logger = MMLogger.get_current_instance()
    logger.addHandler(heard)
    metrics = measure(tmp_path, truth, listed)
    logger.removeHandler(heard)
    (warning,) = heard.stream.getvalue().splitlines()
    assert 'dog, cat' in warning and 'max_per_img' in warning
    assert metrics['AP_f'] == metrics['coco/AP_f'] and metrics['AP_o'] == metrics['coco/AP_o']
