"""Views of a hand-made five-image COCO file."""

import json

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset

from mmgslora.datasets import ForgettingViews, PairedSampler, Protocol
from mmgslora.errors import ForgettingError

CLASSES = ('cat', 'dog', 'cow')
# image id -> (category id, x, y, w, h); categories 1, 2, 3 are cat, dog, cow
BOXES = {
    1: [(1, 2, 3, 10, 12), (2, 20, 5, 8, 9)],
    2: [(2, 1, 1, 30, 30)],
    3: [(1, 4, 4, 6, 6), (1, 15, 15, 7, 7)],
    4: [(3, 8, 8, 9, 9), (2, 0, 0, 5, 5), (3, 20, 20, 9, 9)],
    5: [],
}
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]


@pytest.fixture
def dataset(tmp_path):
    images, annotations = [], []
    for image_id, boxes in BOXES.items():
        cv2.imwrite(str(tmp_path / f'{image_id}.png'), np.full((40, 40, 3), image_id, np.uint8))
        images.append(dict(id=image_id, file_name=f'{image_id}.png', width=40, height=40))
        for category, *box in boxes:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    path = tmp_path / 'ann.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return CocoDataset(
        ann_file=str(path),
        data_prefix=dict(img=str(tmp_path)),
        metainfo=dict(classes=CLASSES),
        pipeline=PIPELINE,
        filter_cfg=dict(filter_empty_gt=False),
    )


def contents(views):
    """{(view, image id): {(label, x1, y1, x2, y2), ...}}"""
    found = {}
    for i in range(len(views)):
        sample = views[i]['data_samples']
        gt = sample.gt_instances
        boxes = gt.bboxes.tensor if hasattr(gt.bboxes, 'tensor') else gt.bboxes
        found[sample.metainfo['view'], sample.metainfo['img_id']] = {
            (label, *box) for label, box in zip(gt.labels.tolist(), boxes.tolist())
        }
    return found


def test_exact_boxes_of_both_views(dataset):
    views = ForgettingViews(dataset, data_ratio=1.0)
    views.set_partition(Protocol(CLASSES, [['dog'], ['cat']]).partition(1))
    assert contents(views) == {
        ('forget', 1): {(1, 20, 5, 28, 14)},
        ('forget', 2): {(1, 1, 1, 31, 31)},
        ('forget', 4): {(1, 0, 0, 5, 5)},
        ('retain', 1): {(0, 2, 3, 12, 15)},
        ('retain', 3): {(0, 4, 4, 10, 10), (0, 15, 15, 22, 22)},
        ('retain', 4): {(2, 8, 8, 17, 17), (2, 20, 20, 29, 29)},
    }


def test_old_classes_are_background_in_both_views(dataset):
    views = ForgettingViews(dataset, data_ratio=1.0)
    views.set_partition(Protocol(CLASSES, [['dog'], ['cat']]).partition(2))
    assert contents(views) == {
        ('forget', 1): {(0, 2, 3, 12, 15)},
        ('forget', 3): {(0, 4, 4, 10, 10), (0, 15, 15, 22, 22)},
        ('retain', 4): {(2, 8, 8, 17, 17), (2, 20, 20, 29, 29)},
    }


def test_the_data_set_itself_is_not_changed(dataset):
    before = [len(dataset.get_data_info(i)['instances']) for i in range(5)]
    views = ForgettingViews(dataset, data_ratio=1.0)
    views.set_partition(Protocol(CLASSES, [['dog']]).partition(1))
    contents(views)
    assert [len(dataset.get_data_info(i)['instances']) for i in range(5)] == before


def test_draw_is_seeded_by_task_and_covers_every_class(dataset):
    protocol = Protocol(CLASSES, [['dog'], ['cat']])

    def drawn(seed, task):
        views = ForgettingViews(dataset, data_ratio=0.4, seed=seed)
        views.set_partition(protocol.partition(task))
        return views

    one = drawn(0, 1)
    assert one.num_forget == 1  # int(0.4 * 3)
    assert one.image_ids('retain') == drawn(0, 1).image_ids('retain')
    draws = {tuple(drawn(seed, 1).image_ids('forget')) for seed in range(20)}
    assert draws == {(1,), (2,), (4,)}
    for seed in range(10):  # cat and cow both stay: one image alone would miss one of them
        kept = drawn(seed, 1).image_ids('retain')
        assert 4 in kept and {1, 3} & set(kept)


def test_class_without_training_image(dataset):
    views = ForgettingViews(dataset)
    with pytest.raises(ForgettingError, match="'cow'.*no training image") as error:
        dataset.get_data_info(3)
        views._labels_of = [labels - {2} for labels in views._labels_of]
        views.set_partition(Protocol(CLASSES, [['cow']]).partition(1))
    assert 'task 1' in str(error.value)


@pytest.mark.parametrize('ratio', [0, -1, 1.5])
def test_data_ratio_out_of_range(dataset, ratio):
    with pytest.raises(ForgettingError, match=f'data_ratio is {ratio}'):
        ForgettingViews(dataset, data_ratio=ratio)


class Counts:
    def __init__(self, num_forget, num_retain):
        self.num_forget, self.num_retain = num_forget, num_retain


@pytest.mark.parametrize(('forget', 'retain'), [(3, 10), (10, 3), (4, 4), (1, 7)])
def test_paired_sampler(forget, retain):
    sampler = PairedSampler(Counts(forget, retain), seed=3)
    uses = np.zeros(forget, int)
    for epoch in range(forget):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 2 * retain
        assert sorted(order[1::2]) == list(range(forget, forget + retain))  # one retain pass
        np.add.at(uses, order[0::2], 1)
    # After `forget` epochs of `retain` pairs every forget image was used equally often.
    assert uses.tolist() == [retain] * forget


def test_ranks_share_the_pairs(monkeypatch):
    whole = list(PairedSampler(Counts(5, 8), seed=1))
    pairs = list(zip(whole[0::2], whole[1::2]))
    for rank in range(2):
        monkeypatch.setattr('mmgslora.datasets.views.get_dist_info', lambda rank=rank: (rank, 2))
        part = list(PairedSampler(Counts(5, 8), seed=1))
        assert list(zip(part[0::2], part[1::2])) == pairs[rank::2]
