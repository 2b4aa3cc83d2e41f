"""Every number against a reference of another making: a hand count, pycocotools run on a reduced
data set of its own, CocoMetric, or a matcher in plain Python."""

import io
import json
import logging
from contextlib import redirect_stdout
from itertools import count
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub, MMLogger
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import mmgslora  # noqa: F401  (before mmdet: puts the stand-in for compiled operators in place)
from mmgslora.datasets.protocol import ClassPartition, Protocol
from mmgslora.errors import ForgettingError
from mmgslora.evaluation import group_by_partition, publish_tasks, remember_pretrained
from mmgslora.families.detector import ForgettingCocoMetric

CLASSES = ('cat', 'dog', 'cup', 'car', 'bus', 'pen')
PROTOCOL = Protocol(CLASSES, tasks=[['dog', 'pen'], ['bus']], missing=['cup'])
_names = count()


@pytest.fixture(autouse=True)
def hub():
    """A message hub of the test's own as the current one."""
    name = f'metric test {next(_names)}'
    yield MessageHub.get_instance(name)
    MessageHub._instance_dict.pop(name)


# An image is its id, its boxes and its detections. A box is (class, x1, y1, x2, y2[, crowd]), a
# detection (class, x1, y1, x2, y2, score).


def coco_dict(images, cat_id_of=None):
    """The images as a COCO annotation file; category ids have gaps, as those of COCO do."""
    cat_id_of = cat_id_of or {name: 3 * i + 2 for i, name in enumerate(CLASSES)}
    annotations = [
        {
            'image_id': image,
            'category_id': cat_id_of[name],
            'bbox': [x1, y1, x2 - x1, y2 - y1],
            'area': (x2 - x1) * (y2 - y1),
            'iscrowd': int(bool(crowd)),
        }
        for image, boxes, _ in images
        for name, x1, y1, x2, y2, *crowd in boxes
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation['id'] = number
    return {
        'images': [{'id': i, 'width': 100, 'height': 100, 'file_name': ''} for i, _, _ in images],
        'categories': [{'id': i, 'name': name} for name, i in cat_id_of.items()],
        'annotations': annotations,
    }


def data_samples(images, with_boxes=False):
    """What a detector of MMDetection returns for the images."""
    samples = []
    for image, boxes, detections in images:
        sample = {
            'img_id': image,
            'ori_shape': (100, 100),
            'pred_instances': {
                'bboxes': torch.tensor([d[1:5] for d in detections]).reshape(-1, 4).float(),
                'scores': torch.tensor([d[5] for d in detections]).float(),
                'labels': torch.tensor([CLASSES.index(d[0]) for d in detections]).long(),
            },
        }
        if with_boxes:
            sample['instances'] = [
                {
                    'bbox': list(map(float, box[1:5])),
                    'bbox_label': CLASSES.index(box[0]),
                    'ignore_flag': int(bool(box[5:])),
                }
                for box in boxes
            ]
        samples.append(sample)
    return samples


def run(metric, samples):
    metric.dataset_meta = {'classes': CLASSES}
    for start in range(0, len(samples), 4):
        metric.process({}, samples[start : start + 4])
    return metric.evaluate(len(samples))


def measure(tmp_path, images, samples=None, truth=None, **kwargs):
    file = tmp_path / 'truth.json'
    file.write_text(json.dumps(truth or coco_dict(images)))
    metric = ForgettingCocoMetric(ann_file=str(file), **kwargs)
    return run(metric, data_samples(images) if samples is None else samples)


def random_images(seed, num_images=30, found=0.8):
    """Objects of six classes, most of them found, with noisy boxes, doubles and false alarms."""
    rng = np.random.default_rng(seed)
    images = []
    for image in range(100, 100 + num_images):
        boxes, detections = [], []
        for _ in range(rng.integers(0, 5)):
            x1, y1 = rng.uniform(0, 60, 2)
            w, h = rng.uniform(10, 40, 2)
            name = CLASSES[rng.integers(6)]
            crowd = (1,) if rng.random() < 0.1 else ()
            boxes.append((name, *(float(v) for v in (x1, y1, x1 + w, y1 + h)), *crowd))
            for _ in range(rng.integers(0, 3) if rng.random() < found else 0):
                noisy = np.array([x1, y1, x1 + w, y1 + h]) + rng.normal(0, 2.5, 4)
                detections.append((name, *map(float, noisy), float(rng.random())))
        for _ in range(rng.integers(0, 4)):
            x1, y1 = rng.uniform(0, 60, 2)
            w, h = rng.uniform(10, 40, 2)
            score = float(rng.random()) * 0.7
            name = CLASSES[rng.integers(6)]
            detections.append((name, *(float(v) for v in (x1, y1, x1 + w, y1 + h)), score))
        images.append((image, boxes, detections))
    return images


def weaker(images, names, factor):
    """The same detector with the scores of these classes multiplied, half their boxes shifted."""
    changed = []
    for image, boxes, detections in images:
        new = []
        for i, (name, x1, y1, x2, y2, score) in enumerate(detections):
            hit = name in names
            shift = 15.0 if hit and i % 2 else 0.0
            new.append((name, x1 + shift, y1, x2 + shift, y2, score * (factor if hit else 1)))
        changed.append((image, boxes, new))
    return changed


def reference_ap(images, names, subset_only):
    """AP of each class by pycocotools, one run per class on a data set reduced beforehand.

    ``subset_only``: only images with a box of ``names``, and only those boxes.
    """
    if subset_only:
        images = [
            (image, [b for b in boxes if b[0] in names], detections)
            for image, boxes, detections in images
        ]
        images = [image for image in images if image[1]]
    aps = {}
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_dict(images)
        truth.createIndex()
        cat_id_of = {c['name']: c['id'] for c in truth.dataset['categories']}
        found = [
            {
                'image_id': image,
                'category_id': cat_id_of[d[0]],
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'score': score,
            }
            for image, _, detections in images
            for d in detections
            for x1, y1, x2, y2, score in [np.float32(d[1:]).tolist()]
        ]
        detected = truth.loadRes(found) if found else COCO()
        for name in names:
            coco_eval = COCOeval(truth, detected, 'bbox')
            coco_eval.params.imgIds = [image for image, _, _ in images]
            coco_eval.params.catIds = [cat_id_of[name]]
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
            if coco_eval.stats[0] >= 0:
                aps[name] = 100 * float(coco_eval.stats[0])
    return aps


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def reference_recall(images, names, threshold):
    """Percent of objects found by a detector that returns nothing below the threshold."""
    found = total = 0
    for _, boxes, detections in images:
        for name in names:
            free = [b[1:5] for b in boxes if b[0] == name and not b[5:]]
            total += len(free)
            kept = [d for d in detections if d[0] == name and d[5] >= threshold]
            for detection in sorted(kept, key=lambda d: -d[5]):
                best = max(free, key=lambda b: iou(b, detection[1:5]), default=None)
                if best is not None and iou(best, detection[1:5]) >= 0.5:
                    free.remove(best)
                    found += 1
    return 100 * found / total


# ---------------------------------------------------------------- by hand

BOX, FAR = (10, 10, 40, 40), (60, 60, 90, 90)
HALF = 51 / 101  # recall 1/2 reaches 51 of the 101 recall points of COCO's precision curve


def small_images():
    return [
        # Both dogs stand here; one is found, and so is a dog where there is none.
        (1, [('dog', *BOX), ('dog', *FAR)], [('dog', *BOX, 0.8), ('cat', *FAR, 0.99)]),
        # A false dog with a high score on an image without dogs.
        (2, [('cat', *BOX)], [('cat', *BOX, 0.9), ('dog', *FAR, 0.95)]),
        (3, [('car', *BOX)], [('car', *BOX, 0.04)]),
        (4, [], [('car', *BOX, 0.02)]),
    ]


def test_hand_counted(tmp_path, hub):
    remember_pretrained({'per_class/dog': 90.0, 'per_class/cat': 70.0})
    ClassPartition(1, forget=('dog',), retain=('cat', 'car', 'cup', 'bus', 'pen')).publish()
    metrics = measure(tmp_path, small_images())
    # dog: one of two found, behind one false alarm: precision 1/2 up to recall 1/2.
    # cat: found, behind the false alarm on image 1: precision 1/2 at every recall.
    # car: found; the false alarm comes after it. No other class has an object.
    assert metrics == pytest.approx(
        {
            'per_class/dog': 50 * HALF,
            'per_class/cat': 50,
            'per_class/car': 100,
            'mAP': (50 * HALF + 150) / 3,
            'AP_f': 50 * HALF,
            'AP_r': 75,
            'Drop': 90 - 50 * HALF,
            'H': 2 * 75 * (90 - 50 * HALF) / (75 + 90 - 50 * HALF),
            # Nothing is known beyond the listed detections, so both ways are one.
            'coco/per_class/dog': 50 * HALF,
            'coco/AP_f': 50 * HALF,
            'coco/Drop': 90 - 50 * HALF,
            'coco/H': 2 * 75 * (90 - 50 * HALF) / (75 + 90 - 50 * HALF),
            # Of the dogs image 1 alone counts; of the others images 2 and 3.
            'paper/AP_f': 100 * HALF,
            'paper/AP_r': 100,
            'AR_f@0.3': 50,
            'AR_f@0.05': 50,
            'AR_r@0.3': 50,
            'AR_r@0.05': 50,
        }
    )
    assert all(type(value) is float for value in metrics.values())


def test_no_partition_gives_only_map_and_classes(tmp_path):
    metrics = measure(tmp_path, small_images())
    assert set(metrics) == {'mAP', 'per_class/dog', 'per_class/cat', 'per_class/car'}


def test_old_and_missing_classes_have_their_keys(tmp_path):
    ClassPartition(2, forget=('cat',), retain=('cup',), old=('dog',), missing=('car',)).publish()
    metrics = measure(tmp_path, small_images(), recall_scores=(0.5, 0.03))
    assert metrics['AP_o'] == pytest.approx(50 * HALF)
    assert metrics['paper/AP_o'] == pytest.approx(100 * HALF)
    assert metrics['AP_m'] == pytest.approx(100)
    assert (metrics['AR_m@0.5'], metrics['AR_m@0.03'], metrics['AR_o@0.5']) == (0, 100, 50)
    # No cup anywhere: nothing is known of the retained classes.
    assert {'AP_r', 'paper/AP_r', 'AR_r@0.5', 'H'}.isdisjoint(metrics)


def test_tiny_scores_in_the_right_order_keep_ap_but_not_recall(tmp_path):
    ClassPartition(1, forget=('car',), retain=('cat',)).publish()
    metrics = measure(tmp_path, small_images())
    assert metrics['AP_f'] == pytest.approx(100)
    assert (metrics['AR_f@0.3'], metrics['AR_f@0.05']) == (0, 0)


def test_a_score_at_the_threshold_is_enough(tmp_path):
    """Half is exact in every format."""
    ClassPartition(1, forget=('dog',), retain=('cat',)).publish()
    images = [(1, [('dog', *BOX), ('dog', *FAR)], [('dog', *BOX, 0.5), ('dog', *FAR, 0.4375)])]
    assert measure(tmp_path, images, recall_scores=(0.5,))['AR_f@0.5'] == 50


def test_crowds_are_neither_found_nor_missed_but_make_a_subset_image(tmp_path):
    ClassPartition(1, forget=('dog',), retain=('cat',)).publish()
    images = [
        (1, [('dog', *BOX)], [('dog', *BOX, 0.8)]),
        (2, [('dog', *BOX, 1)], [('dog', *BOX, 0.9), ('dog', *FAR, 0.95)]),
    ]
    metrics = measure(tmp_path, images)
    # The detection on the crowd is ignored; the one beside it is wrong, under both protocols.
    assert (metrics['AP_f'], metrics['paper/AP_f']) == pytest.approx((50, 50))
    assert metrics['AR_f@0.3'] == 100


def test_at_most_100_detections_per_image_and_class(tmp_path):
    crowded = [('dog', *FAR, 0.9 - i / 1000) for i in range(100)] + [('dog', *BOX, 0.5)]
    metrics = measure(tmp_path, [(1, [('dog', *BOX)], crowded)])
    assert metrics['per_class/dog'] == 0


# ---------------------------------------------------------------- against references


@pytest.mark.parametrize('task', [1, 2])
@pytest.mark.parametrize('seed', [0, 1])
def test_random_images_against_pycocotools(tmp_path, seed, task):
    partition = PROTOCOL.partition(task)
    before = random_images(seed)
    after = weaker(before, partition.forget + partition.old, 0.2)

    publish_tasks(PROTOCOL.tasks)
    PROTOCOL.partition(1).publish()
    remember_pretrained(measure(tmp_path, before))
    partition.publish()
    metrics = measure(tmp_path, after)

    groups = {
        'f': partition.forget,
        'r': partition.retain,
        'o': partition.old,
        'm': partition.missing,
    }
    for prefix, subset_only in (('', False), ('paper/', True)):
        expected = {}
        for letter, names in groups.items():
            if names:
                per_class = reference_ap(after, names, subset_only)
                expected[f'AP_{letter}'] = fmean(per_class.values())
        pretrained = fmean(reference_ap(before, partition.forget, subset_only).values())
        drop = expected['Drop'] = pretrained - expected['AP_f']
        kept = expected['AP_r']
        expected['H'] = 2 * kept * drop / (kept + drop)
        assert drop > 0
        for key, value in expected.items():
            assert metrics[prefix + key] == pytest.approx(value), prefix + key

    per_class = reference_ap(after, CLASSES, subset_only=False)
    assert {k: v for k, v in metrics.items() if k.startswith('per_class/')} == pytest.approx(
        {f'per_class/{name}': ap for name, ap in per_class.items()}
    )
    for letter, names in groups.items():
        for threshold in (0.3, 0.05) if names else ():
            assert metrics[f'AR_{letter}@{threshold:g}'] == pytest.approx(
                reference_recall(after, names, threshold)
            )
    assert {'AP_o', 'AR_o@0.3', 'paper/AP_o'}.isdisjoint(metrics) == (task == 1)


def test_agrees_with_coco_metric(tmp_path):
    from mmdet.evaluation.metrics import CocoMetric

    images = random_images(2)
    metrics = measure(tmp_path, images)
    with redirect_stdout(io.StringIO()):
        theirs = CocoMetric(ann_file=str(tmp_path / 'truth.json'), classwise=True)
        expected = run(theirs, data_samples(images))
    for name in CLASSES:
        ours = metrics[f'per_class/{name}'] / 100
        assert ours == pytest.approx(expected[f'coco/{name}_precision'], abs=5.1e-4)
    assert metrics['mAP'] / 100 == pytest.approx(expected['coco/bbox_mAP'], abs=5.1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), found=st.floats(0.1, 1), threshold=st.floats(0.01, 0.99))
def test_properties_on_random_images(tmp_path_factory, seed, found, threshold):
    tmp_path = tmp_path_factory.mktemp('random')
    images = random_images(seed, num_images=8, found=found)
    partition = PROTOCOL.partition(2)
    partition.publish()
    metrics = measure(tmp_path, images, recall_scores=(threshold, 0.0))
    present = {box[0] for _, boxes, _ in images for box in boxes if not box[5:]}
    assert {f'per_class/{name}' for name in present} == {
        k for k in metrics if k.startswith('per_class/')
    }
    for letter, names in {'f': partition.forget, 'r': partition.retain}.items():
        if not present.intersection(names):
            assert f'AP_{letter}' not in metrics
            continue
        assert metrics[f'AR_{letter}@{threshold:g}'] == pytest.approx(
            reference_recall(images, names, threshold)
        )
        assert metrics[f'AR_{letter}@{threshold:g}'] <= metrics[f'AR_{letter}@0']
        # Leaving out images without an object can only take false alarms away.
        assert metrics[f'AP_{letter}'] <= metrics[f'paper/AP_{letter}'] + 1e-9
    # The order in which images come is of no matter.
    again = measure(
        tmp_path, images, samples=data_samples(images)[::-1], recall_scores=(threshold,)
    )
    assert again['mAP'] == pytest.approx(metrics['mAP'])


# ---------------------------------------------------------------- the pre-trained model


def test_pretrained_evaluation_returns_paper_values_of_every_task(tmp_path):
    images = random_images(3)
    publish_tasks(PROTOCOL.tasks)
    # A partition may be published already, whatever it is.
    ClassPartition(1, forget=('pen',), retain=('cat',)).publish()
    metrics = measure(tmp_path, images)
    expected = {}
    for task in PROTOCOL.tasks:
        expected.update(reference_ap(images, task, subset_only=True))
    got = {k: v for k, v in metrics.items() if k.startswith('paper/per_class/')}
    assert got == pytest.approx({f'paper/per_class/{k}': v for k, v in expected.items()})


def test_pretrained_values_survive_a_resume(tmp_path, hub):
    images = random_images(4)
    publish_tasks(PROTOCOL.tasks)
    remember_pretrained(measure(tmp_path, images))
    PROTOCOL.partition(2).publish()
    after = weaker(images, ('bus',), 0.1)
    straight = measure(tmp_path, after)
    assert {'Drop', 'H', 'paper/Drop', 'paper/H'} <= set(straight)
    assert not [key for key in straight if key.startswith('paper/per_class/')]

    torch.save(hub.state_dict(), tmp_path / 'checkpoint.pth')
    fresh = MessageHub.get_instance('metric test after a resume')
    try:
        assert 'Drop' not in measure(tmp_path, after)
        fresh.load_state_dict(torch.load(tmp_path / 'checkpoint.pth', weights_only=True))
        assert measure(tmp_path, after) == straight
    finally:
        MessageHub._instance_dict.pop('metric test after a resume')


@pytest.mark.parametrize('published', [[], [['dog', 'bus']]])
def test_no_paper_drop_for_a_task_that_was_not_published(tmp_path, published):
    images = random_images(5)
    publish_tasks(published)
    remember_pretrained(measure(tmp_path, images))
    PROTOCOL.partition(2).publish()
    metrics = measure(tmp_path, images)
    assert {'Drop', 'H', 'paper/AP_f'} <= set(metrics)
    assert {'paper/Drop', 'paper/H'}.isdisjoint(metrics)


def test_prefix_of_the_user(tmp_path):
    ClassPartition(1, forget=('dog',), retain=('cat',)).publish()
    before = measure(tmp_path, small_images(), prefix='val')
    assert all(key.startswith('val/') for key in before)
    remember_pretrained(before)
    assert measure(tmp_path, small_images(), prefix='val')['val/Drop'] == 0


# ---------------------------------------------------------------- edges


def test_no_detections_at_all(tmp_path):
    ClassPartition(1, forget=('dog',), retain=('cat', 'car')).publish()
    images = [(image, boxes, []) for image, boxes, _ in small_images()]
    metrics = measure(tmp_path, images)
    keys = {'AP_f', 'AP_r', 'mAP', 'paper/AP_f', 'paper/AP_r', 'AR_f@0.3', 'AR_r@0.05'}
    assert {key: metrics[key] for key in keys} == dict.fromkeys(keys, 0)
    assert {metrics[f'per_class/{name}'] for name in ('dog', 'cat', 'car')} == {0}


def test_no_detection_of_a_class(tmp_path):
    images = [
        (image, boxes, [d for d in detections if d[0] != 'dog'])
        for image, boxes, detections in small_images()
    ]
    metrics = measure(tmp_path, images)
    assert (metrics['per_class/dog'], metrics['per_class/car']) == (0, pytest.approx(100))


def test_no_ground_truth_at_all(tmp_path):
    ClassPartition(1, forget=('dog',), retain=('cat', 'car')).publish()
    remember_pretrained({})
    images = [(image, [], detections) for image, _, detections in small_images()]
    assert measure(tmp_path, images) == {}
    assert run(ForgettingCocoMetric(), data_samples(images, with_boxes=True)) == {}


def test_predictions_for_a_part_of_the_images(tmp_path):
    metrics = measure(tmp_path, small_images(), samples=data_samples(small_images()[:2]))
    assert metrics['per_class/car'] == 0
    assert metrics['per_class/cat'] == pytest.approx(50)


@pytest.mark.parametrize('name_of', [str, lambda i: f'val/{i}.jpg'])
def test_image_ids_may_be_strings(tmp_path, name_of):
    PROTOCOL.partition(2).publish()
    images = random_images(6, num_images=10)
    named = [(name_of(image), boxes, detections) for image, boxes, detections in images]
    assert measure(tmp_path, named) == pytest.approx(measure(tmp_path, images))


@pytest.mark.parametrize('id_of', [lambda n: n, lambda n: f'box-{n}', None])
def test_ids_of_boxes_may_begin_at_0_be_text_or_lack_iscrowd(tmp_path, id_of):
    """COCOeval would count what finds the box of id 0 as a false alarm."""
    images = [(1, [('dog', 10, 10, 50, 50)], [('dog', 10, 10, 50, 50, 0.9)])]
    truth = coco_dict(images)
    for number, box in enumerate(truth['annotations']):
        if id_of is None:
            del box['iscrowd']
        else:
            box['id'] = id_of(number)
    assert measure(tmp_path, images, truth=truth) == measure(tmp_path, images)
    assert measure(tmp_path, images)['per_class/dog'] == pytest.approx(100)


def test_category_ids_in_any_order(tmp_path):
    PROTOCOL.partition(2).publish()
    images = random_images(7, num_images=10)
    ids = dict(zip(CLASSES, (44, 3, 90, 17, 1, 62)))
    assert measure(tmp_path, images, truth=coco_dict(images, ids)) == pytest.approx(
        measure(tmp_path, images)
    )


def test_ground_truth_from_the_data_set(tmp_path):
    PROTOCOL.partition(2).publish()
    images = random_images(8)
    metric = ForgettingCocoMetric()
    samples = data_samples(images, with_boxes=True)
    first = run(metric, samples)
    assert first == pytest.approx(measure(tmp_path, images))
    assert run(metric, samples) == first


def test_no_ann_file_and_samples_without_their_objects():
    """As of a data set in VOC's format, whose pipeline keeps no boxes for measuring."""
    metric = ForgettingCocoMetric()
    with pytest.raises(ForgettingError, match="ann_file .* or name 'instances' among the meta_key"):
        metric.process({}, data_samples([(1, [('cat', 0, 0, 9, 9)], [])]))


def test_is_built_by_name_and_is_quiet(tmp_path, capsys):
    (tmp_path / 'truth.json').write_text(json.dumps(coco_dict(small_images())))
    heard = logging.StreamHandler(io.StringIO())
    heard.setLevel(logging.INFO)
    MMLogger.get_current_instance().addHandler(heard)
    # The settings of MMDetection's own COCO configs must be accepted.
    config = {
        'type': 'ForgettingCocoMetric',
        'ann_file': str(tmp_path / 'truth.json'),
        'metric': 'bbox',
        'format_only': False,
        'backend_args': None,
    }
    evaluator = Evaluator(config)
    evaluator.dataset_meta = {'classes': CLASSES}
    evaluator.process(data_samples(small_images()))
    assert evaluator.evaluate(4)['per_class/cat'] == pytest.approx(50)
    MMLogger.get_current_instance().removeHandler(heard)
    assert capsys.readouterr().out == heard.stream.getvalue() == ''


def test_result_file_is_kept_where_asked(tmp_path):
    measure(tmp_path, small_images(), outfile_prefix=str(tmp_path / 'mine'))
    assert len(json.loads((tmp_path / 'mine.bbox.json').read_text())) == 6
    (tmp_path / 'mine.bbox.json').unlink()
    prefix = str(tmp_path / 'mine')
    assert measure(tmp_path, small_images(), format_only=True, outfile_prefix=prefix) == {}
    assert (tmp_path / 'mine.bbox.json').exists()


@pytest.mark.parametrize('wrong', [{'metric': 'segm'}, {'iou_thrs': [0.5]}])
def test_other_measures_are_refused(wrong):
    with pytest.raises(ForgettingError, match=next(iter(wrong))):
        ForgettingCocoMetric(**wrong)


def test_groups_are_those_of_group_by_partition(tmp_path):
    partition = PROTOCOL.partition(2)
    partition.publish()
    metrics = measure(tmp_path, random_images(9))
    per_class = {k[len('per_class/') :]: v for k, v in metrics.items() if k.startswith('per_class')}
    for key, value in group_by_partition(per_class, partition).items():
        assert metrics[key] == value
