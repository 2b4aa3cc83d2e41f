import hashlib
from itertools import combinations

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mmgslora.datasets.generated_faces import draw_face, face_classes, identity, write_faces
from mmgslora.errors import ForgettingError

SMALL = dict(identities=3, train=2, val=1, test=1, size=32, seed=4)


def test_same_seed_same_images_everywhere():
    """The digest was read once; corners on a grid and integer pixels keep it on every machine."""
    digest = hashlib.sha256()
    for number in range(24):  # every hair style, beard and frame is among them
        pixels = draw_face(np.random.default_rng([0, number]), identity(0, number))
        assert pixels.shape == (56, 56, 3) and pixels.dtype == np.uint8
        digest.update(pixels.tobytes())
    assert digest.hexdigest()[:16] == '890bd9daf2c57076'


def test_persons_differ_in_more_than_one_feature():
    people = [identity(0, number) for number in range(24)]
    features = ('style', 'skin', 'hair', 'iris', 'beard', 'glasses')
    for one, other in combinations(people, 2):
        assert sum(one[key] != other[key] for key in features) >= 2
    assert people[3] == identity(0, 3) != identity(1, 3)


def test_skin_colour_is_in_the_image():
    """In even light the cheek has the skin's colour, but for noise and the tone of the light."""
    for number in range(12):
        person = identity(0, number)
        person.update(glasses='none', beard='none', mole=None)
        found = []
        for i in range(20):
            pixels = draw_face(np.random.default_rng(i), person).astype(float)
            found.append(pixels[33:37, 23:33].mean((0, 1)))
        assert np.abs(np.mean(found, 0) - person['skin']).max() < 30


def test_folders(tmp_path):
    write_faces(tmp_path / 'f', **SMALL)
    assert face_classes(3) == ('person_01', 'person_02', 'person_03')
    for split in ('train', 'val', 'test'):
        folders = sorted((tmp_path / 'f' / split).iterdir())
        assert tuple(folder.name for folder in folders) == face_classes(3)
        assert {len(list(folder.glob('*.png'))) for folder in folders} == {SMALL[split]}
    images = [np.asarray(Image.open(p)) for p in sorted((tmp_path / 'f').glob('*/*/*.png'))]
    assert len({p.tobytes() for p in images}) == 12  # no two are the same
    second = np.asarray(Image.open(tmp_path / 'f/val/person_02/0001.png'))
    again = draw_face(np.random.default_rng([4, 1, 1, 0]), identity(4, 1), 32)
    assert np.array_equal(second, again)
    with pytest.raises(ForgettingError, match='holds .*identities.: 3.* but .*identities.: 5'):
        write_faces(tmp_path / 'f', **{**SMALL, 'identities': 5})


def test_data_set_makes_its_folder(tmp_path):
    dataset = DATASETS.build(
        dict(
            type='GeneratedFacesDataset',
            data_root=str(tmp_path / 'f'),
            generate=SMALL,
            folder='train',
        )
    )
    assert dataset.makes_its_files
    assert len(dataset) == 6 and dataset.metainfo['classes'] == face_classes(3)
