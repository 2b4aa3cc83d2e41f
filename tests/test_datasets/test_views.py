"""Views of a hand-made five-image COCO file."""

import copy
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from mmengine.structures import BaseDataElement

from mmgslora.datasets import ForgettingViews, PairedSampler, Protocol
from mmgslora.datasets.views import check_held_out
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


def test_images_without_ids_are_known_by_their_places(dataset, monkeypatch):
    """As in many classification data sets: ledger and record name the images of a task."""
    known = dataset.get_data_info

    def without_id(index):
        return {key: value for key, value in known(index).items() if key != 'img_id'}

    monkeypatch.setattr(dataset, 'get_data_info', without_id)
    views = ForgettingViews(dataset, data_ratio=1.0)
    views.set_partition(Protocol(CLASSES, tasks=[['cow']]).partition(1))
    assert views.image_ids('forget') == [3] and sorted(views.image_ids('retain')) == [0, 1, 2, 3]


@pytest.mark.parametrize('within', [False, True])
def test_a_pipeline_that_mixes_images(dataset, within):
    """The image to forget would show, with their labels, objects of classes that must stay."""
    step = dict(type='CachedMosaic', img_scale=(40, 40), max_cached_images=5)
    step = dict(type='RandomApply', transforms=[step]) if within else step
    mixing = CocoDataset(
        ann_file=dataset.ann_file,
        data_prefix=dict(img=dataset.data_prefix['img']),
        metainfo=dict(classes=CLASSES),
        pipeline=[*PIPELINE[:2], step, PIPELINE[2]],
    )
    with pytest.raises(ForgettingError, match='pipeline has CachedMosaic, which mixes other image'):
        ForgettingViews(mixing)


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
        views = ForgettingViews(dataset, data_ratio=0.4, min_images=1, seed=seed)
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


@pytest.mark.parametrize(
    ('step', 'words'),
    [(1, "gives no boxes; .*'LoadAnnotations'"), (2, "no data_samples; .*'PackDetInputs'")],
)
def test_a_pipeline_that_lacks_a_step(dataset, step, words):
    del dataset.pipeline.transforms[step]
    views = ForgettingViews(dataset)
    views.set_partition(Protocol(CLASSES, tasks=[['dog']]).partition(1))
    with pytest.raises(ForgettingError, match=words):
        views[0]


def test_class_without_training_image(dataset):
    views = ForgettingViews(dataset)
    with pytest.raises(ForgettingError, match="'cow'.*no training image") as error:
        views._labels_of = [labels - {2} for labels in views._labels_of]
        views.set_partition(Protocol(CLASSES, [['cow']]).partition(1))
    assert 'task 1' in str(error.value)


def test_images_with_a_missing_class_are_in_no_view(dataset):
    views = ForgettingViews(dataset, data_ratio=1.0)
    views.set_partition(Protocol(CLASSES, [['dog']], missing=['cow']).partition(1))
    assert {image for _, image in contents(views)} == {1, 2, 3}  # image 4 shows a cow


class Labels:
    """A data set of images that show these labels, without pixels."""

    metainfo = dict(classes=tuple('abcdef'))

    def __init__(self, labels):
        self.labels = labels

    def full_init(self):
        pass

    def __len__(self):
        return len(self.labels)

    def get_data_info(self, index):
        return dict(img_id=index, instances=[dict(bbox_label=x) for x in self.labels[index]])


class Crowds(Labels):
    """The same, with labels above 9 for crowds: 10 is a crowd of 0."""

    def get_data_info(self, index):
        instances = [dict(bbox_label=x % 10, ignore_flag=x // 10) for x in self.labels[index]]
        return dict(img_id=index, instances=instances)


def test_a_crowd_of_a_missing_class_shows_it():
    views = ForgettingViews(Crowds([{0, 15}, {0, 11}, {1}, {1, 5}, {10}]), data_ratio=1.0)
    others = ['c', 'd', 'e', 'f']
    views.set_partition(Protocol(tuple('abcdef'), [['a']], missing=others).partition(1))
    assert views.image_ids('forget') == [1]  # 0 shows a crowd of f, in 4 a is a crowd only
    assert views.image_ids('retain') == [2]  # in 1 b is a crowd only, 3 shows f


def test_held_out_data_show_what_is_forgotten():
    dataset = Crowds([{0}, {1, 12}, {3}])
    assert check_held_out(dataset, [['a', 'b'], ['d']], ['d', 'e', 'f']) == []
    assert check_held_out(dataset, [['a', 'c'], ['d', 'e', 'f']], 'bdef') == ['c', 'e', 'f']
    with pytest.raises(ForgettingError, match='Task 2 forgets c, e, .* no object of them'):
        check_held_out(dataset, [['a'], ['c', 'e']], ['b'])  # of c there is a crowd only
    with pytest.raises(ForgettingError, match='no object of c, e, which must stay'):
        check_held_out(dataset, [['a']], ['c', 'e'])


class Drawn(Labels):
    """Images with a label each, of which the pipeline draws a number and gives up on some."""

    def __init__(self, labels, unusable=()):
        super().__init__(labels)
        self.unusable = unusable

    def get_data_info(self, index):
        return dict(img_id=index, gt_label=self.labels[index])

    def pipeline(self, info):
        if info['img_id'] in self.unusable:
            return None
        sample = BaseDataElement(metainfo=dict(img_id=info['img_id']))
        return dict(inputs=torch.rand(1), data_samples=sample)


def shown(views):
    """Image id of each item, those of the forget view first."""
    return [views[i]['data_samples'].img_id for i in range(len(views))]


def test_images_kept_of_one_task_are_not_those_of_the_next():
    """Once drawn is once for a task, and for a copy that draws for another task, too."""
    partition = Protocol(tuple('abcdef'), [['a'], ['b']]).partition
    views = ForgettingViews(Drawn([0, 1, 2, 0]), data_ratio=1.0, redraw=False)
    drawn = {}
    for task, forget in ((1, {0, 3}), (2, {1})):
        views.set_partition(partition(task))
        assert {*shown(views)[: views.num_forget]} == forget
        drawn.update({(task, id_): views[i]['inputs'].item() for i, id_ in enumerate(shown(views))})
    assert len({*drawn.values()}) == len(drawn) == 4 + 2  # the last retains image 2 alone
    other = copy.deepcopy(views)
    other.set_partition(partition(1))
    assert {*shown(views)[:1]} == {1} and {*shown(other)[:2]} == {0, 3}
    views.set_partition(partition(1))
    again = {(1, id_): views[i]['inputs'].item() for i, id_ in enumerate(shown(views))}
    assert again.items() <= drawn.items()  # as a resumed run draws them
    views.seed = 1
    views.set_partition(partition(1))
    assert not {views[i]['inputs'].item() for i in range(4)} & {*again.values()}


def test_the_next_image_serves_where_the_pipeline_gives_up():
    """Of the same view, and after its last one the first."""
    dataset = Drawn([0, 0, 0, 1, 1, 1])
    views = ForgettingViews(dataset, data_ratio=1.0)
    views.set_partition(Protocol(tuple('abcdef'), [['a']]).partition(1))
    first, second, third, *retain = shown(views)
    assert {first, second, third} == {0, 1, 2}
    dataset.unusable = (second, retain[2])
    assert shown(views) == [first, third, third, retain[0], retain[1], retain[0]]
    assert [views[i]['data_samples'].view for i in (2, 3)] == ['forget', 'retain']
    dataset.unusable = (0, 1, 2)
    with pytest.raises(ForgettingError, match='nothing for each of the 3 images of the forget'):
        views[0]


def test_a_tenth_is_drawn_and_ten_of_a_class_and_anew_each_time():
    """Unless something else is said: of 120 images a tenth, of 50 that have to stay ten."""
    views = ForgettingViews(Drawn([0] * 120 + [1] * 50))
    views.set_partition(Protocol(tuple('abcdef'), [['a']]).partition(1))
    assert (views.num_forget, views.num_retain) == (12, 10)
    for index in (0, views.num_forget):
        assert views[index]['inputs'] != views[index]['inputs']


@pytest.mark.parametrize(('keep_gb', 'made'), [(0, 6), (8e-9, 4), (1.0, 3)])
def test_memory_for_what_is_kept_is_in_gigabytes(monkeypatch, keep_gb, made):
    """Three images of 4 bytes, each asked for twice: with room for none, for two and for all."""
    views = ForgettingViews(Drawn([0, 1, 1]), data_ratio=1.0, redraw=False, keep_gb=keep_gb)
    views.set_partition(Protocol(tuple('abcdef'), [['a']]).partition(1))
    calls, make = [], views._make
    monkeypatch.setattr(views, '_make', lambda index: calls.append(index) or make(index))
    assert shown(views) == shown(views) and len(calls) == made


def test_every_task_draws_for_itself():
    """Two tasks with the same 40 images to retain, of which each draws ten."""
    partition = Protocol(tuple('abcdef'), [['a'], ['b']]).partition
    views = ForgettingViews(Drawn([0, 1] + [2] * 40))
    draws = []
    for task in (1, 2, 1):
        views.set_partition(replace(partition(task), retain=('c',)))
        draws.append(views.image_ids('retain'))
    assert draws[0] == draws[2] and {*draws[0]} != {*draws[1]}


label_sets = st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=1, max_size=30)


@given(label_sets, st.integers(1, 4), st.integers(0, 5))
def test_few_shot_is_exact(labels, k, seed):
    partition = Protocol(tuple('abcdef'), [['a', 'b']], missing=['f']).partition(1)
    views = ForgettingViews(Labels(labels), few_shot=k, seed=seed)
    usable = [i for i, found in enumerate(labels) if 5 not in found]
    counts = [sum(label in labels[i] for i in usable) for label in range(5)]
    if min(counts) < k:
        with pytest.raises(ForgettingError):
            views.set_partition(partition)
        return
    views.set_partition(partition)
    for side, names in (('forget', 'ab'), ('retain', 'cde')):
        images = views.images_of_classes(side)
        assert {name: len(set(ids)) for name, ids in images.items()} == dict.fromkeys(names, k)
        for name, ids in images.items():
            assert all('abcdef'.index(name) in labels[i] and i in usable for i in ids)
    again = ForgettingViews(Labels(labels), few_shot=k, seed=seed)
    again.set_partition(partition)
    assert again.images_of_classes('retain') == views.images_of_classes('retain')


@given(label_sets, st.integers(1, 4), st.integers(0, 5))
def test_a_share_shows_every_class_often_enough(labels, least, seed):
    labels = [*labels, {0, 2}, {1}]
    partition = Protocol(tuple('abcdef'), [['a', 'b']], missing=['f']).partition(1)
    views = ForgettingViews(Labels(labels), data_ratio=0.3, min_images=least, seed=seed)
    views.set_partition(partition)
    usable = [found for found in labels if 5 not in found]
    for side, names in (('forget', 'ab'), ('retain', 'cde')):
        images = views.images_of_classes(side)
        wanted = {'abcdef'.index(name) for name in names}
        share = int(0.3 * sum(bool(found & wanted) for found in usable))
        for name in names:
            there = sum('abcdef'.index(name) in found for found in usable)
            assert len(images.get(name, [])) >= min(least, there)
        # An image more only where a class is still short of images.
        assert len(views.image_ids(side)) <= share + least * len(names)


def test_few_shot_keeps_whole_images_while_there_are_any():
    # Of a: image 0 or 1, both with b; of b: also 2. Whole images exist: 0 or 1 alone serves both.
    views = ForgettingViews(Labels([{0, 1}, {0, 1}, {1}, {2}]), few_shot=1)
    partition = Protocol(tuple('abcdef'), [['a', 'b']], missing=['d', 'e', 'f']).partition(1)
    for seed in range(10):
        views.seed = seed
        views.set_partition(partition)
        kept = {image: set() for ids in views.images_of_classes('forget').values() for image in ids}
        for name, ids in views.images_of_classes('forget').items():
            kept[ids[0]].add('abcdef'.index(name))
        assert all(kept[i] == {0, 1} for i in kept if i in (0, 1)) or 2 in kept


def test_few_shot_boxes(dataset):
    """Two images of dog and one more cat image: only boxes that count are kept."""
    views = ForgettingViews(dataset, few_shot=2)
    views.set_partition(Protocol(CLASSES, [['dog']], missing=['cow']).partition(1))
    assert contents(views) == {
        ('forget', 1): {(1, 20, 5, 28, 14)},
        ('forget', 2): {(1, 1, 1, 31, 31)},
        ('retain', 1): {(0, 2, 3, 12, 15)},
        ('retain', 3): {(0, 4, 4, 10, 10), (0, 15, 15, 22, 22)},
    }


def test_too_few_for_few_shot(dataset):
    views = ForgettingViews(dataset, few_shot=3)
    few = r"asks for 3.*retain in task 1.*'cat' \(2\), 'cow' \(1\); use few_shot=1 or .*missing"
    with pytest.raises(ForgettingError, match=few):
        views.set_partition(Protocol(CLASSES, [['dog']]).partition(1))
    with pytest.raises(ForgettingError, match=r"forget in task 1.*'cow' \(1\); use few_shot=1\."):
        views.set_partition(Protocol(CLASSES, [['cow']]).partition(1))
    with pytest.raises(ForgettingError, match='few_shot is 0.*from 1 up'):
        ForgettingViews(dataset, few_shot=0)


@pytest.mark.parametrize('ratio', [0, -1, 1.5])
def test_data_ratio_out_of_range(dataset, ratio):
    with pytest.raises(ForgettingError, match=f'data_ratio is {ratio}'):
        ForgettingViews(dataset, data_ratio=ratio)


class Counts:
    """Views of so many items; ``of_classes``: the forget items that show each class."""

    def __init__(self, num_forget, num_retain, of_classes=None):
        self.num_forget, self.num_retain = num_forget, num_retain
        self.forget_items = of_classes or [list(range(num_forget))]


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


def test_classes_to_forget_take_turns():
    """Class 0 has 9 images, class 1 the two last of them, class 2 one of its own."""
    of_classes = [list(range(9)), [7, 8], [9]]
    sampler = PairedSampler(Counts(10, 6, of_classes), seed=2)
    drawn = []
    for epoch in range(9):
        sampler.set_epoch(epoch)
        drawn += list(sampler)[0::2]
    uses = np.bincount(drawn, minlength=10)
    # 54 pairs, 18 turns each: every image of class 0 twice, both of class 1 nine times more.
    assert uses.tolist() == [2] * 7 + [2 + 9] * 2 + [18]
    for start in range(0, 54, 3):  # a turn for each in any three
        assert sum(item == 9 for item in drawn[start : start + 3]) == 1


def test_the_authors_order_knows_no_classes():
    """Images by turns, whatever they show."""
    drawn = []
    for epoch in range(5):
        sampler = PairedSampler(Counts(10, 6, [list(range(9)), [9]]), by_class=False)
        sampler.set_epoch(epoch)
        drawn += list(sampler)[0::2]
    assert np.bincount(drawn, minlength=10).tolist() == [3] * 10


@pytest.mark.parametrize('pairs', [None, 20])
def test_seed_and_epoch_make_the_order(pairs):
    """Of 20 images in each view; no two passes and no two seeds have the same of either."""

    def orders(seed, epoch):
        sampler = PairedSampler(Counts(20, 20), seed=seed, pairs=pairs)
        sampler.set_epoch(epoch)
        order = tuple(sampler)
        return order[0::2], order[1::2]

    found = [orders(*moment) for moment in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for side in zip(*found):
        assert len({*side}) == 4 and all(len({*order}) == 20 for order in side)
    assert orders(1, 1) == found[3]


def test_the_order_in_which_classes_take_turns_is_drawn():
    """Six classes of one image: a permutation for each round, others for another seed."""
    rounds = set()
    for seed in (0, 1):
        order = list(PairedSampler(Counts(6, 12, [[i] for i in range(6)]), seed=seed))[0::2]
        rounds |= {tuple(order[:6]), tuple(order[6:])}
    assert len(rounds) == 4 and all(sorted(order) == list(range(6)) for order in rounds)


def test_how_many_short_epochs_show_everything(monkeypatch):
    """Of ten images to retain: five with two pairs each, three in two processes, one as a pass."""
    assert PairedSampler(Counts(3, 10), pairs=2).parts == 5
    monkeypatch.setattr('mmgslora.datasets.views.get_dist_info', lambda: (1, 2))
    assert PairedSampler(Counts(3, 10), pairs=2).parts == 3
    assert PairedSampler(Counts(3, 10)).parts == 1


def test_short_epochs_go_on_where_the_last_one_ended():
    """Five pairs at a time of 8 retain images: after 8 epochs each was used 5 times."""
    sampler, uses = PairedSampler(Counts(3, 8), seed=1, pairs=5), np.zeros(8, int)
    for epoch in range(8):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 10
        np.add.at(uses, np.array(order[1::2]) - 3, 1)
        if epoch == 0:
            assert len(set(order[1::2])) == 5  # none twice within a pass
    assert uses.tolist() == [5] * 8


def test_long_epochs_go_round():
    """Twelve pairs at a time of 8 retain images: after 2 epochs each was used 3 times."""
    sampler, drawn = PairedSampler(Counts(3, 8), seed=1, pairs=12), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        drawn += list(sampler)[1::2]
    assert np.bincount(np.array(drawn) - 3).tolist() == [3] * 8
    assert all(len(set(drawn[start : start + 8])) == 8 for start in (0, 8, 16))


@pytest.mark.parametrize('redraw, again', [(True, 2), ('forget', 1), (False, 0)])
def test_which_view_is_drawn_anew(dataset, monkeypatch, redraw, again):
    views = ForgettingViews(dataset, data_ratio=1.0, redraw=redraw)
    views.set_partition(Protocol(CLASSES, tasks=[['dog']]).partition(1))
    made = []
    make = views._make
    monkeypatch.setattr(views, '_make', lambda index: made.append(index) or make(index))
    for _ in range(2):
        for index in (0, views.num_forget):
            views[index]
    assert len(made) == 2 + again
    assert made.count(0) == 1 + (again > 0)


def test_a_copy_shares_the_data_and_draws_for_itself(dataset):
    views = ForgettingViews(dataset, data_ratio=1.0)
    protocol = Protocol(CLASSES, [['cat'], ['dog']])
    views.set_partition(protocol.partition(1))
    other = copy.deepcopy(views)
    assert other.base is views.base
    views.set_partition(protocol.partition(2))
    assert other.image_ids('forget') != views.image_ids('forget')


def test_ranks_share_the_pairs(monkeypatch):
    whole = list(PairedSampler(Counts(5, 8), seed=1))
    pairs = list(zip(whole[0::2], whole[1::2]))
    for rank in range(2):
        monkeypatch.setattr('mmgslora.datasets.views.get_dist_info', lambda rank=rank: (rank, 2))
        part = list(PairedSampler(Counts(5, 8), seed=1))
        assert list(zip(part[0::2], part[1::2])) == pairs[rank::2]
