"""Annotation files by hand; what MMDetection makes of them is asked of MMDetection."""

import copy
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config

import mmgslora.register  # noqa: F401
from mmgslora.preflight.annotations import dropped_boxes, image_problems, parsed
from mmgslora.preflight.data import _decodes, evaluated_files, files
from mmgslora.preflight.plan import Plan

IMAGE = dict(id=1, file_name='1.png', width=20, height=10)


def said(dataset, check=files, **more):
    """What a check says of a training data set, in one text."""
    cfg = Config(dict(train_dataloader=dict(dataset=dataset), work_dir='.', **more))
    return '\n'.join(Plan(cfg).run([(check, ())]).sentences)


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
    (path.parent / 'images/1.png').write_bytes(b'not looked into')
    content = dict(images=[IMAGE], annotations=[], categories=categories)
    path.write_text(json.dumps(content))


def test_what_is_there_passes(dataset):
    assert not said(dataset)
    assert not said(dict(type='ForgettingViews', dataset=dataset))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(ann_file='no.json'), "Annotation file '.*no.json' does not exist"),
        (dict(data_prefix=dict(img='no/')), "Image folder '.*no' does not exist"),
        (dict(data_root='nowhere'), "Annotation file 'nowhere/ann.json'"),
    ],
)
def test_what_is_missing_is_named(dataset, change, words):
    assert re.search(words, said(dict(type='ForgettingViews', dataset=dataset | change)))


def test_remote_and_generated_data_are_left_alone():
    assert not said(dict(type='CocoDataset', data_root='s3://bucket/', ann_file='a.json'))
    assert not said(dict(type='ShapesDataset', data_root='nowhere/', ann_file='a.json'))


def test_a_list_of_images_is_no_annotation_file_of_coco(tmp_path):
    """Of a data set in VOC's format, whose boxes are in XML files."""
    (tmp_path / 'train.txt').write_text('000001\n000002\n')
    metainfo = dict(classes=('cat',))
    voc = dict(type='XMLDataset', data_root=str(tmp_path), ann_file='train.txt', metainfo=metainfo)
    assert said(dict(type='ForgettingViews', dataset=voc)) == ''
    words = "train.txt' cannot be read as COCO JSON"
    assert words in said(dict(type='ForgettingViews', dataset=voc | dict(type='CocoDataset')))


def test_mmdetection_numbers_labels_in_the_order_of_the_file(tmp_path):
    """The reason for the next test: the label of 'cat' is that of 'dog'."""
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
    assert re.search(words, said(dict(type='ForgettingViews', dataset=dataset)))


def test_categories_that_no_class_has_are_left_out_as_mmdetection_does(dataset, tmp_path):
    write_categories(tmp_path / 'ann.json', 'pig', 'cat', 'dog', 'hen', 'cow')
    assert not said(dataset)


def test_classes_that_nobody_named_are_those_of_coco(dataset):
    """One sentence and not one for each of eighty."""
    del dataset['metainfo']
    (line,) = said(dataset).splitlines()
    assert 'has no category for 77 of the 80 classes of metainfo.classes, the first is' in line
    assert "'person'; it has cat, dog, cow. Without metainfo" in line


def test_two_classes_of_one_name(dataset):
    dataset['metainfo'] = dict(classes=('cat', 'dog', 'cat'))
    assert "metainfo.classes has 'cat' 2 times" in said(dataset)


@pytest.mark.parametrize('text', ['{"images": [', '[]', '{}', '{"categories": [{"id": 1}]}'])
def test_an_annotation_file_that_is_none(dataset, tmp_path, text):
    (tmp_path / 'ann.json').write_text(text)
    assert re.search(r"ann\.json' cannot be read as COCO JSON", said(dataset))


def test_an_evaluator_reads_the_file_of_its_loader(dataset, tmp_path):
    own = dict(type='CocoMetric', ann_file=str(tmp_path / 'images/../ann.json'))
    other = dict(type='CocoMetric', ann_file=str(tmp_path / 'other.json'))

    def of_test(evaluator):
        more = dict(test_dataloader=dict(dataset=dataset), test_evaluator=evaluator)
        return said(dict(dataset=dataset), evaluated_files, **more)

    assert not of_test(own) and not of_test([own, dict(type='DumpResults')]) and not of_test(None)
    words = r"test_evaluator.ann_file is '.*other.json', but test_dataloader"
    assert re.search(words, of_test([own, other]))


BOXES = {
    'kept': dict(bbox=[1, 1, 5, 5]),
    'reaches in': dict(bbox=[-3, -3, 5, 5]),
    'outside': dict(bbox=[20, 1, 5, 5]),
    'negative': dict(bbox=[1, 1, -5, 5]),
    'thin': dict(bbox=[1, 1, 0.5, 5]),
    'no area': dict(bbox=[1, 1, 5, 5], area=0),
    'no class': dict(bbox=[1, 1, 5, 5], category_id=99),
    'unused class': dict(bbox=[1, 1, 5, 5], category_id=12),
    'no image': dict(bbox=[1, 1, 5, 5], image_id=7),
    'ignored': dict(bbox=[1, 1, 5, 5], ignore=1),
}


def test_dropped_boxes_are_those_that_mmdetection_drops():
    classes = ('cat', 'dog')
    categories = [dict(id=10 + i, name=name) for i, name in enumerate(['cat', 'dog', 'cow'])]
    for name, box in BOXES.items():
        box = dict(id=1, image_id=1, category_id=10, area=9) | box
        content = dict(images=[IMAGE], annotations=[box], categories=categories)
        file = Path('in-memory.json').resolve()
        with parsed({file: copy.deepcopy(content)}):
            dataset = CocoDataset(
                ann_file=str(file),
                data_prefix=dict(img=''),
                metainfo=dict(classes=classes),
                pipeline=[],
            )
        kept = len(dataset.get_data_info(0)['instances'])
        assert kept + sum(dropped_boxes(content, classes).values()) == 1, name
        assert kept == (name in ('kept', 'reaches in'))


def test_counts_of_dropped_boxes_are_a_note(dataset, tmp_path):
    content = json.loads((tmp_path / 'ann.json').read_text())
    boxes = [dict(id=i, image_id=1, category_id=10, area=9) for i in range(3)]
    shapes = ([1, 1, 5, 5], [50, 1, 5, 5], [1, 99, 5, 5])
    content['annotations'] = [box | dict(bbox=shape) for box, shape in zip(boxes, shapes)]
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    plan = Plan(Config(dict(train_dataloader=dict(dataset=dataset)))).run([(files, ())])
    assert not plan.sentences
    assert len(plan.notes) == 1 and '(train): 2 outside the image.' in plan.notes[0]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(images=[]), 'has no images'),
        (dict(images=[IMAGE, IMAGE]), "id 1 more than once in 'images'"),
        (dict(images=[IMAGE, IMAGE | dict(id='b')]), "numbers and text as ids in 'images'; they"),
        (dict(images=[IMAGE, dict(id=2)]), "entry 1 of 'images' lacks file_name, width, height"),
        (dict(images=[IMAGE | dict(file_name='2.png')]), '1 of the 1 images .* are missing.*2.png'),
        (dict(annotations=None), "no list 'annotations'"),
        (
            dict(annotations=[dict(id=5, image_id=1, category_id=10, area=1, bbox=[1])]),
            r'Annotation 5 has the bbox \[1\]',
        ),
        (  # a mask alone, of a class that is not used
            dict(annotations=[dict(id=5, image_id=1, category_id=99, area=1, bbox=[])]),
            r'Annotation 5 has the bbox \[\]',
        ),
        *(
            (
                dict(annotations=[dict(id=5, image_id=1, category_id=10, area=1, bbox=bbox)]),
                'Annotation 5 has the bbox',
            )
            for bbox in (['1', '1', '5', '5'], [1, 1, float('nan'), 5], [1, 1, 5, float('inf')])
        ),
        (dict(images=[IMAGE | dict(file_name=3)]), "'images' has the file_name 3; it can be text"),
        (dict(images=[IMAGE | dict(width='20')]), "'images' has the width '20'; .* a number"),
        (dict(images=[IMAGE | dict(id=[1])]), r"entry 0 of 'images' has the id \[1\]; it can be"),
        (dict(categories=[dict(id=1, name=7)]), "'categories' has the name 7; it can be text"),
        (
            dict(annotations=[dict(id=5, image_id=7, category_id=10, area=1, bbox=[1, 1, 5, 5])]),
            "No box of .*ann.json' can be trained on: 1 of an image that is not listed",
        ),
    ],
)
def test_files_that_cannot_be_used(dataset, tmp_path, change, words):
    content = json.loads((tmp_path / 'ann.json').read_text())
    (tmp_path / 'ann.json').write_text(json.dumps(content | change))
    assert re.search(words, said(dataset))


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_a_file_that_mmdetection_could_not_decode(dataset, tmp_path, encoding):
    text = (tmp_path / 'ann.json').read_text()
    (tmp_path / 'ann.json').write_text(text, encoding=encoding)
    assert "ann.json' cannot be read as COCO JSON" in said(dataset)


@pytest.mark.parametrize('prefix', ['images/', None])
def test_an_image_folder_that_is_no_dict(dataset, prefix):
    words = f"data_prefix (train) is {prefix!r}; it can be a dict, such as dict(img='train/')."
    assert said(dataset | dict(data_prefix=prefix)) == words


def test_classes_that_lack_a_comma(dataset):
    words = said(dataset | dict(metainfo=dict(classes=('cat'))))
    assert words.startswith("metainfo.classes (train) is the text 'cat'; it can be a list")


def test_an_empty_image(dataset, tmp_path):
    (tmp_path / 'images/1.png').write_bytes(b'')
    assert re.search("1 of the 1 images .* are empty in .*'1.png'", said(dataset))


def test_a_link_to_nothing_is_a_missing_image_where_it_is_listed(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'x')
    (tmp_path / 'b.png').symlink_to(tmp_path / 'gone.png')
    assert not list(image_problems([dict(file_name='a.png')], tmp_path, Path('x')))
    listed = [dict(file_name='a.png'), dict(file_name='b.png')]
    (sentence,) = image_problems(listed, tmp_path, Path('x'))
    assert sentence.startswith("1 of the 2 images of 'x' are missing")


def test_an_image_whose_name_has_a_slash_too_many_is_there(tmp_path):
    """As a folder with a slash at its end, joined with another, makes it."""
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub/a b.PNG').write_bytes(b'x')
    assert not list(image_problems([dict(file_name='sub//a b.PNG')], tmp_path, Path('x')))
    absolute = str(tmp_path / 'sub/a b.PNG')
    assert not list(image_problems([dict(file_name=absolute)], Path('nowhere'), Path('x')))


def test_images_that_are_never_read_may_be_missing(tmp_path):
    """Those without objects where these are filtered, and test data of a run that has others."""
    (tmp_path / 'a.png').write_bytes(b'x')
    images = [dict(IMAGE, id=number, file_name=f'{name}.png') for number, name in enumerate('ab')]
    box = dict(id=1, image_id=0, category_id=1, bbox=[0, 0, 5, 5], area=25, iscrowd=0)
    content = dict(images=images, annotations=[box], categories=[dict(id=1, name='cat')])
    file = tmp_path / 'file.json'
    file.write_text(json.dumps(content))
    dataset = dict(type='CocoDataset', ann_file=str(file), data_prefix=dict(img=str(tmp_path)))
    dataset['metainfo'] = dict(classes=('cat',))
    assert '1 of the 2 images of' in said(dataset, train_cfg={})
    assert said(dict(dataset, filter_cfg=dict(filter_empty_gt=True)), train_cfg={}) == ''
    nowhere = dict(test_dataloader=dict(dataset=dict(dataset, ann_file='nowhere.json')))
    filtered = dict(dataset, filter_cfg=dict(filter_empty_gt=True))
    assert 'does not exist' in said(filtered, train_cfg={}, **nowhere)
    assert said(filtered, train_cfg=dict(evaluate_on='val'), **nowhere) == ''


@pytest.mark.parametrize(
    ('change', 'whole'),
    [
        (lambda jpeg: jpeg, True),
        (lambda jpeg: jpeg + b'SEFT\0', True),  # as some cameras do
        (lambda jpeg: jpeg[: len(jpeg) // 2], False),
        # A header with a picture of its own, which is whole.
        (lambda jpeg: jpeg[:2] + b'\xff\xe1\0\x08\xff\xda\xff\xd9\0\0' + jpeg[2:-9], False),
        (lambda jpeg: b'', False),
    ],
)
def test_a_jpeg_that_was_cut_off(tmp_path, change, whole):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    path = tmp_path / 'a.jpg'
    path.write_bytes(change(cv2.imencode('.jpg', noise)[1].tobytes()))
    assert _decodes(str(path)) == whole
