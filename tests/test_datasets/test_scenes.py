import hashlib
import json

import numpy as np

from mmgslora.datasets import SCENE_CLASSES, SHAPES, ScenesDataset, write_scenes
from mmgslora.datasets.scenes import COLOURS, draw_scene, neighbours


def drawn(number, size=96):
    rng = np.random.default_rng(3)
    return [draw_scene(rng, size) for _ in range(number)]


def test_every_pair_of_colour_and_shape_is_a_class():
    assert len(set(SCENE_CLASSES)) == 80
    assert {tuple(c.split()) for c in SCENE_CLASSES} == {(c, s) for c in COLOURS for s in SHAPES}


def test_neighbours_share_one_part():
    """Of red circle: 7 other circles and 9 other red shapes."""
    found = neighbours('red circle')
    assert len(found) == 7 + 9
    assert 'blue circle' in found and 'red square' in found
    assert not {'red circle', 'blue square'} & set(found)


def test_made_like_coco():
    """Long tail, empty images, crowds, sizes, company: what the docstrings promise, in 1,500."""
    objects = [found for _, found in drawn(1500)]
    single = [o for found in objects for o in found if not o['iscrowd']]
    counts = np.bincount([o['category_id'] for o in single], minlength=81)[1:]
    assert counts.min() > 0 and counts.max() > 15 * counts.min()
    assert 0.01 < np.mean([not found for found in objects]) < 0.03
    assert 0.03 < np.mean([any(o['iscrowd'] for o in found) for found in objects]) < 0.07
    assert 3.5 < len(single) / len(objects) < 5
    sides = [max(o['bbox'][2:]) for o in single]
    assert np.percentile(sides, 95) > 3 * np.percentile(sides, 5)
    # Two of one kind of scene meet more often than two of different kinds.
    both = np.zeros((80, 80))
    for found in objects:
        labels = {o['category_id'] - 1 for o in found}
        for a in labels:
            for b in labels - {a}:
                both[a, b] += 1
    expected = np.outer(both.sum(0), both.sum(0)) / both.sum()
    top = np.argsort(counts)[-16:]  # two of each kind
    lift = (both / expected)[np.ix_(top, top)][~np.eye(16, dtype=bool)]
    assert lift.max() > 2 and np.median(lift) < 1


def test_boxes_are_tight_around_the_colour():
    """Of single red objects: the box is that of the red pixels."""
    checked = 0
    for image, objects in drawn(400):
        reds = [o for o in objects if SCENE_CLASSES[o['category_id'] - 1].startswith('red')]
        if len(reds) != 1 or reds[0]['iscrowd']:
            continue
        blue, green, red = image.astype(int).transpose(2, 0, 1)
        mask = (red - blue > 110) & (red - green > 110) & (abs(blue - green) < 80)
        x, y, w, h = reds[0]['bbox']
        outside = mask.sum() - mask[y : y + h, x : x + w].sum()
        if outside:  # a pink or orange object may be as red
            continue
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert [xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1] == [x, y, w, h]
        assert mask.sum() == reds[0]['area']
        checked += 1
    assert checked > 20


def test_same_seed_same_images_everywhere():
    """The digest was read once; integer arithmetic keeps it on every machine."""
    digest = hashlib.sha256()
    for image, objects in drawn(5):
        digest.update(image.tobytes() + json.dumps(objects, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == '53e35f491df897a8'


def test_folder_is_coco(tmp_path):
    numbers = dict(train=30, val=2, test=1, size=64, seed=1)
    write_scenes(tmp_path / 's', **numbers)
    content = json.loads((tmp_path / 's/annotations/train.json').read_text())
    assert [c['name'] for c in content['categories']] == list(SCENE_CLASSES)
    dataset = ScenesDataset(
        data_root=str(tmp_path / 's'),
        generate=numbers,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
    )
    assert len(dataset) == 30
    crowds = sum(a['iscrowd'] for a in content['annotations'])
    objects = [o for k in range(30) for o in dataset.get_data_info(k)['instances']]
    ignored = sum(o['ignore_flag'] for o in objects)
    assert crowds == ignored
