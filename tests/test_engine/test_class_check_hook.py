"""Class names of hand-made checkpoints against those of the training data."""

from types import SimpleNamespace

import pytest

from mmgslora.engine import ClassCheckHook
from mmgslora.errors import ForgettingError

CLASSES = ('cat', 'dog', 'cow')
# Where MMDetection 3, its release candidates, and MMDetection 2 put the names.
PLACES = [
    lambda names: dict(dataset_meta=dict(classes=names)),
    lambda names: dict(dataset_meta=dict(CLASSES=names, PALETTE=None)),
    lambda names: dict(CLASSES=names),
]


def check(meta):
    runner = SimpleNamespace(train_loop=SimpleNamespace(views=SimpleNamespace(classes=CLASSES)))
    ClassCheckHook().after_load_checkpoint(runner, dict(state_dict={}, meta=meta))


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('kind', [list, tuple])
def test_names_in_every_place(place, kind):
    check(place(kind(CLASSES)))
    with pytest.raises(ForgettingError, match="has 'cow' as class 0, the data set 'cat'"):
        check(place(kind(reversed(CLASSES))))
    with pytest.raises(ForgettingError, match='has 2 classes, the data set 3'):
        check(place(kind(CLASSES[:2])))


@pytest.mark.parametrize('place', PLACES)
def test_a_single_class_as_a_string(place):
    with pytest.raises(ForgettingError, match='has 1 class, the data set 3'):
        check(place('cat'))  # three letters, but one class


def test_a_checkpoint_without_names_passes():
    for meta in (None, {}, dict(CLASSES=None), dict(dataset_meta={})):
        check(meta)
