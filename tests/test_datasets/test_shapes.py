import hashlib
import json

import cv2
import numpy as np
import pytest

from mmgslora.datasets.shapes import (
    SHAPES,
    UNSEEN_SHAPES,
    ShapesDataset,
    draw_image,
    fill_shape,
    write_shapes,
)
from mmgslora.errors import ForgettingError


def test_areas_of_filled_shapes():
    """Pixel counts against the areas of the outlines, worked out by hand."""
    radius = 50
    centre = (64, 64)
    expected = {
        'square': (1.5 * radius) ** 2,
        'circle': 20 * np.sin(np.pi / 20) * (0.95 * radius) ** 2,
        'triangle': 3 * np.sqrt(3) / 4 * radius**2,
        'hexagon': 3 * np.sqrt(3) / 2 * (0.95 * radius) ** 2,
        'ring': 20 * np.sin(np.pi / 20) * (0.95**2 - 0.5**2) * radius**2,
        'cross': (0.54 * 1.9 * 2 - 0.54**2) * radius**2,
        'star': 5 * 0.42 * np.sin(np.pi / 5) * radius**2,
    }
    for name, area in expected.items():
        for degrees in (0, 33):
            assert fill_shape(name, centre, radius, degrees, 128).sum() == pytest.approx(
                area, rel=0.02
            )


def test_boxes_are_tight_and_inside():
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(60):
        image, objects = draw_image(rng, 64)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert 1 <= len(objects) <= 4
        for item in objects:
            x, y, w, h = item['bbox']
            assert min(x, y) >= 0 and max(x + w, y + h) <= 64
            assert 0.2 * w * h < item['area'] <= w * h
            seen.add(item['category_id'])
    assert seen == set(range(1, len(SHAPES) + 1))


def test_same_seed_same_images_everywhere():
    """The digest was read once; integer arithmetic keeps it on every machine."""
    digest = hashlib.sha256()
    rng = np.random.default_rng([0, 0])
    for _ in range(5):
        image, objects = draw_image(rng, 64)
        digest.update(image.tobytes() + json.dumps(objects, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == '0187e9206adda875'


def test_folder_is_coco_and_whole(tmp_path):
    write_shapes(tmp_path / 's', train=3, val=2, test=1, size=64, seed=4)
    content = json.loads((tmp_path / 's/annotations/train.json').read_text())
    assert [c['name'] for c in content['categories']] == list(SHAPES)
    assert len(content['images']) == 3
    for image in content['images']:
        assert cv2.imread(str(tmp_path / 's/train' / image['file_name'])).shape == (64, 64, 3)
    assert [p.name for p in tmp_path.iterdir()] == ['s']  # no draft is left behind
    dataset = ShapesDataset(
        data_root=str(tmp_path / 's'),
        generate=dict(train=3, val=2, test=1, size=64, seed=4),
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
    )
    assert len(dataset) == 3
    with pytest.raises(ForgettingError, match='holds .*train.: 3.* but .*train.: 9'):
        write_shapes(tmp_path / 's', train=9, val=2, test=1, size=64, seed=4)


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('x')
    with pytest.raises(ForgettingError, match='no shapes data set'):
        write_shapes(tmp_path)
    assert (tmp_path / 'mine.txt').read_text() == 'x'


def test_shapes_that_are_in_no_data_set_by_default(tmp_path):
    names = ['hexagon', *UNSEEN_SHAPES]
    assert not {*UNSEEN_SHAPES} & {*SHAPES}
    made = dict(train=6, val=1, test=1, size=64, shapes=names)
    root = f'{tmp_path / "s"}/'
    data = ShapesDataset(
        data_root=root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        generate=made,
    )
    assert data.metainfo['classes'] == tuple(names)
    assert {item['bbox_label'] for i in range(6) for item in data.get_data_info(i)['instances']}
    for name in UNSEEN_SHAPES:
        assert 0.15 < fill_shape(name, (64, 64), 50, 0, 128).sum() / 100**2 < 0.7
    with pytest.raises(ForgettingError, match="'blob' cannot be drawn; those that can are circle,"):
        write_shapes(tmp_path / 'other', shapes=['blob'])
