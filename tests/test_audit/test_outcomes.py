import numpy as np
import pytest

from mmgslora.audit.outcomes import nearest_classes, outcomes

from .flat import CLASSES, make_objects


def test_every_object_is_one_thing():
    objects = make_objects(
        [0, 0, 0, 0, 0, 2, 2, 1],
        scores=[
            [0.30, 0.90, 0, 0],  # found: its own class is used, whatever else is
            [0.29, 0.31, 0.32, 0],  # called c: the best of the others
            [0.29, 0.10, 0, 0],  # low_score
            [0.04, 0.29, 0, 0],  # background
            [0.29, 0.30, 0, 0],  # called b
            [0.00, 0.00, 0.05, 0],  # low_score
            [0.00, 0.95, 0.20, 0],  # called b
            [0.99, 0.00, 0.00, 0],  # not forgotten, does not count
        ],
    )
    found = outcomes(objects, [0, 2], CLASSES, working=0.3, low=0.05)
    seventh = pytest.approx(100 / 7)
    assert found == {
        'found': seventh,
        'low_score': pytest.approx(200 / 7),
        'background': seventh,
        'called b': pytest.approx(200 / 7),
        'called c': seventh,
    }


def test_thresholds_can_be_set():
    objects = make_objects([0], scores=[[0.2, 0, 0, 0]])
    assert outcomes(objects, [0], CLASSES, working=0.2, low=0.05)['found'] == 100
    assert outcomes(objects, [0], CLASSES, working=0.3, low=0.21)['background'] == 100


def test_nearest_class_is_the_one_most_confused_with():
    # On a line: a at 0, b at 10, c at 11 and d at 17.
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 200)
    points = rng.normal(size=(800, 1)) + np.array([0, 10, 11, 17])[labels, None]
    objects = make_objects(labels, line=points)
    found = nearest_classes(objects, objects, CLASSES, 'line')
    assert found == dict(a='b', b='c', c='b', d='c')
