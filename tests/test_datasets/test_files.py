import json

import pytest

from mmgslora.datasets.files import check_evaluator, check_files
from mmgslora.errors import ForgettingError


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / 'images').mkdir()
    write_categories(tmp_path / 'ann.json', 'cat', 'dog', 'cow')
    return dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='ann.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('cat', 'dog', 'cow')),
    )


def write_categories(path, *names):
    categories = [dict(id=10 + i, name=name) for i, name in enumerate(names)]
    path.write_text(json.dumps(dict(images=[], annotations=[], categories=categories)))


def test_what_is_there_passes(dataset):
    check_files(dataset)
    check_files(dict(type='ForgettingViews', dataset=dataset))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(ann_file='no.json'), "Annotation file '.*no.json' does not exist"),
        (dict(data_prefix=dict(img='no/')), "Image folder '.*no' does not exist"),
        (dict(data_root='nowhere'), "Annotation file 'nowhere/ann.json'"),
    ],
)
def test_what_is_missing_is_named(dataset, change, words):
    with pytest.raises(ForgettingError, match=words):
        check_files(dict(type='ForgettingViews', dataset=dataset | change))


def test_remote_and_generated_data_are_left_alone():
    check_files(dict(type='CocoDataset', data_root='s3://bucket/', ann_file='a.json'))
    check_files(dict(type='ShapesDataset', data_root='nowhere/', ann_file='a.json'))


def test_mmdetection_numbers_labels_in_the_order_of_the_file(tmp_path):
    """The reason for the next test: the label of 'cat' is that of 'dog'."""
    from mmdet.datasets import CocoDataset

    image = dict(id=1, file_name='1.png', width=9, height=9)
    box = dict(id=1, image_id=1, category_id=5, bbox=[0, 0, 4, 4], area=16, iscrowd=0)
    categories = [dict(id=7, name='dog'), dict(id=5, name='cat')]
    content = dict(images=[image], annotations=[box], categories=categories)
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    dataset = CocoDataset(
        ann_file=str(tmp_path / 'ann.json'),
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[],
    )
    assert dataset.get_data_info(0)['instances'][0]['bbox_label'] == 1  # classes[1] is 'dog'


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        (('cat', 'dogs', 'cow'), "no category 'dog'.*it has cat, dogs, cow.*Is 'dogs' meant"),
        (('cat', 'cow'), "ann.json' has no category 'dog'.*it has cat, cow"),
        (('dog', 'cat', 'cow'), "category 'dog' where metainfo.classes has 'cat' .class 0.*order"),
        (('cat', 'dog', 'cow', 'dog'), "2 categories of the name 'dog'"),
    ],
)
def test_categories_that_are_not_the_classes_are_refused(dataset, tmp_path, names, words):
    write_categories(tmp_path / 'ann.json', *names)
    with pytest.raises(ForgettingError, match=words):
        check_files(dict(type='ForgettingViews', dataset=dataset))


def test_categories_that_no_class_has_are_left_out_as_mmdetection_does(dataset, tmp_path):
    write_categories(tmp_path / 'ann.json', 'pig', 'cat', 'dog', 'hen', 'cow')
    check_files(dataset)


def test_two_classes_of_one_name(dataset):
    with pytest.raises(ForgettingError, match="metainfo.classes has 'cat' 2 times"):
        check_files(dataset | dict(metainfo=dict(classes=('cat', 'dog', 'cat'))))


@pytest.mark.parametrize('text', ['{"images": [', '[]', '{}', '{"categories": [{"id": 1}]}'])
def test_an_annotation_file_that_is_none(dataset, tmp_path, text):
    (tmp_path / 'ann.json').write_text(text)
    with pytest.raises(ForgettingError, match=r"ann\.json' cannot be read as COCO JSON"):
        check_files(dataset)


def test_an_evaluator_reads_the_file_of_its_loader(dataset, tmp_path):
    own = dict(type='CocoMetric', ann_file=str(tmp_path / 'images/../ann.json'))
    check_evaluator(own, dataset, 'val')
    check_evaluator([own, dict(type='DumpResults')], dict(dataset=dataset), 'val')
    check_evaluator(None, dataset, 'val')
    other = dict(type='CocoMetric', ann_file=str(tmp_path / 'other.json'))
    with pytest.raises(
        ForgettingError, match=r"test_evaluator.ann_file is '.*other.json', but test_dataloader"
    ):
        check_evaluator([own, other], dataset, 'test')
