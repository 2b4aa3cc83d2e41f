import json
from collections import Counter

import numpy as np
import pytest

from mmgslora.datasets.split import split_coco
from mmgslora.errors import ForgettingError


@pytest.fixture
def file(tmp_path):
    """200 images; class 1 on half of them, class 2 on every tenth, 3 on two, 4 on one, 20 empty."""
    rng = np.random.default_rng(3)
    boxes = []
    for image in range(1, 181):
        labels = [1] * int(rng.integers(0, 2)) + [2] * (image % 10 == 0)
        labels += [3] * (image in (7, 8)) + [4] * (image == 9)
        boxes += [
            dict(id=len(boxes) + i, image_id=image, category_id=x) for i, x in enumerate(labels)
        ]
    content = dict(
        info='kept',
        images=[dict(id=i, file_name=f'{i}.jpg') for i in range(1, 201)],
        annotations=boxes,
        categories=[dict(id=i, name=n) for i, n in ((4, 'd'), (1, 'a'), (3, 'c'), (2, 'b'))],
    )
    path = tmp_path / 'all.json'
    path.write_text(json.dumps(content))
    return path


def images_of_classes(part):
    pairs = {(a['image_id'], a['category_id']) for a in part['annotations']}
    return Counter(label for _, label in pairs)


def test_every_class_is_in_both_parts_with_its_share(file):
    whole = json.loads(file.read_text())
    parts = split_coco(file, val=0.2, seed=1)
    total, train, val = map(images_of_classes, (whole, parts['train'], parts['val']))
    assert total[2] == 18 and val[2] >= round(0.2 * 18)
    assert val[1] == pytest.approx(0.2 * total[1], abs=3)
    assert (train[3], val[3]) == (1, 1)
    assert (train[4], val[4]) == (1, 0)  # a single image: to learn from, not to measure
    assert train + val == total


def test_the_parts_make_the_whole(file):
    whole = json.loads(file.read_text())
    parts = split_coco(file, val=0.2, seed=1)
    for key in ('images', 'annotations'):
        ids = [[x['id'] for x in parts[name][key]] for name in ('train', 'val')]
        assert sorted(ids[0] + ids[1]) == sorted(x['id'] for x in whole[key])
        assert ids == [sorted(i) for i in ids]  # in the file's order
    for part in parts.values():
        known = {image['id'] for image in part['images']}
        assert all(a['image_id'] in known for a in part['annotations'])
        assert part['categories'] == whole['categories'] and part['info'] == 'kept'
    assert len(parts['val']['images']) == pytest.approx(40, abs=3)


def test_the_seed_decides(file):
    def val_of(seed):
        return [image['id'] for image in split_coco(file, seed=seed)['val']['images']]

    assert val_of(1) == val_of(1) != val_of(2)


def test_bad_input(file, tmp_path):
    with pytest.raises(ForgettingError, match=r'is 1\.5; it must be between 0 and 1'):
        split_coco(file, val=1.5)
    with pytest.raises(ForgettingError, match=r"none\.json' cannot be read"):
        split_coco(tmp_path / 'none.json')
    (tmp_path / 'list.json').write_text('[]')
    with pytest.raises(ForgettingError, match=r"list\.json' cannot be read as COCO JSON"):
        split_coco(tmp_path / 'list.json')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c['images'][3].pop('id'), 'entry 3 of images lacks id'),
        (lambda c: c['annotations'][0].pop('image_id'), 'entry 0 of annotations lacks image_id'),
        (lambda c: c['categories'][0].pop('name'), 'entry 0 of categories lacks name'),
        (lambda c: c.update(images={}), 'images is no list'),
        (lambda c: c['images'].append(c['images'][0]), 'image id 1 2 times'),
        (lambda c: c['images'].clear(), 'has 0 images, which leave none for one of the parts'),
        (lambda c: c.update(images=c['images'][:1]), 'has 1 images'),
    ],
)
def test_files_that_cannot_be_split(file, change, words):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ForgettingError, match=words):
        split_coco(file)


def test_a_seed_below_zero(file):
    with pytest.raises(ForgettingError, match='seed is -1; it can be a whole number from 0'):
        split_coco(file, seed=-1)
