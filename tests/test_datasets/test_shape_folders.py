import hashlib
import json

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mmgslora.datasets.shape_folders import SHAPE_CLASSES, draw_shape, write_shape_folders
from mmgslora.errors import ForgettingError

SMALL = dict(train=3, val=2, test=1, size=24, seed=4)


def test_same_seed_same_images_everywhere():
    """The digest was read once; integer arithmetic keeps it on every machine."""
    digest = hashlib.sha256()
    for label in range(len(SHAPE_CLASSES)):
        digest.update(draw_shape(np.random.default_rng([0, label]), label).tobytes())
    assert digest.hexdigest()[:16] == '1e4f31151b472132'


def test_light_shape_of_the_right_size_on_a_dark_ground():
    """A square has sides of 1.5 radii, and a radius is 0.28 to 0.42 of the side of the image."""
    label = SHAPE_CLASSES.index('square')
    for seed in range(20):
        pixels = draw_shape(np.random.default_rng(seed), label, 100).astype(int)
        assert pixels.shape == (100, 100, 3)
        inside = pixels[40:60, 40:60].reshape(-1, 3)
        assert (inside >= 100).all() and (inside.max(0) - inside.min(0) <= 20).all()
        # Of all pixels those within reach of the colour in the middle are the square.
        square = (np.abs(pixels - np.median(inside, 0)) <= 20).all(-1).sum()
        assert (1.5 * 28) ** 2 * 0.97 <= square <= (1.5 * 42) ** 2 * 1.1


def test_folders(tmp_path):
    write_shape_folders(tmp_path / 's', **SMALL)
    for split in ('train', 'val', 'test'):
        assert sorted(p.name for p in (tmp_path / 's' / split).iterdir()) == list(SHAPE_CLASSES)
        for folder in (tmp_path / 's' / split).iterdir():
            assert len(list(folder.glob('*.png'))) == SMALL[split]
    assert [p.name for p in tmp_path.iterdir()] == ['s']  # no draft is left behind
    images = [np.asarray(Image.open(p)) for p in sorted((tmp_path / 's').glob('*/*/*.png'))]
    assert {p.shape for p in images} == {(24, 24, 3)}
    assert len({p.tobytes() for p in images}) == 60  # no two are the same
    rng = np.random.default_rng([4, 0, 2, 1])
    second = Image.open(tmp_path / 's/train/crescent/0002.png')
    assert np.array_equal(second, draw_shape(rng, 2, 24))
    assert json.loads((tmp_path / 's/shape_folders.json').read_text()) == SMALL
    with pytest.raises(ForgettingError, match='holds .*train.: 3.* but .*train.: 9'):
        write_shape_folders(tmp_path / 's', **{**SMALL, 'train': 9})


def test_data_set_makes_its_folder(tmp_path):
    dataset = DATASETS.build(
        dict(
            type='ShapeFolderDataset',
            data_root=str(tmp_path / 's'),
            generate=SMALL,
            folder='val',
            classes_from='train',
        )
    )
    assert dataset.makes_its_files
    assert len(dataset) == 20 and dataset.metainfo['classes'] == SHAPE_CLASSES


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('x')
    with pytest.raises(ForgettingError, match='no shape_folders data set'):
        write_shape_folders(tmp_path)
    assert (tmp_path / 'mine.txt').read_text() == 'x'
