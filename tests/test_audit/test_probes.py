from math import erf, sqrt

import numpy as np
import pytest

from mmgslora.audit.probes import draw_objects, probe_accuracy

from .flat import make_objects


def gaussians(per_class, distance, seed, dims=2):
    """Two unit Gaussians ``distance`` apart: no reader is better than Phi(distance / 2)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], per_class)
    points = rng.normal(size=(len(labels), dims))
    points[:, 0] += distance * labels
    return labels, points


@pytest.mark.parametrize('kind', ['probe', 'prototype'])
@pytest.mark.parametrize('distance', [0.0, 1.0, 3.0])
def test_accuracy_is_that_of_the_best_reader(kind, distance):
    train = gaussians(2000, distance, seed=0)
    held_out = gaussians(20000, distance, seed=1)
    found = probe_accuracy(
        make_objects(train[0], layer=train[1]),
        make_objects(held_out[0], layer=held_out[1]),
        [0, 1],
        kind=kind,
    )
    # Phi(d / 2); the standard error of 40,000 draws is at most 0.25 points.
    assert found['layer'] == pytest.approx(50 * (1 + erf(distance / 2 / sqrt(2))), abs=1.2)


def test_only_the_named_classes_count_but_all_are_told_apart():
    # Class 2 sits on class 0: half of class 0 is lost to it, class 1 is not touched.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 500)
    points = rng.normal(size=(1500, 2)) + np.where(labels[:, None] == 1, 20.0, 0.0)
    objects = make_objects(labels, layer=points)
    assert probe_accuracy(objects, objects, [1])['layer'] == 100
    assert probe_accuracy(objects, objects, [0])['layer'] == pytest.approx(50, abs=15)
    assert probe_accuracy(objects.of([0, 1]), objects, [0])['layer'] == 100


def test_layers_are_read_one_by_one():
    labels, points = gaussians(200, 12.0, seed=0)
    noise = np.random.default_rng(1).normal(size=points.shape)
    objects = make_objects(labels, noise=noise, points=points)
    found = probe_accuracy(objects, objects, [0, 1])
    assert list(found) == ['noise', 'points']
    assert found['points'] == 100
    assert found['noise'] < 70


def test_scale_of_a_feature_does_not_matter():
    labels, points = gaussians(300, 3.0, seed=0)
    scaled = points * [1e-4, 1e4]
    plain, stretched = (
        probe_accuracy(make_objects(labels, x=x), make_objects(labels, x=x), [0, 1])['x']
        for x in (points, scaled)
    )
    assert stretched == pytest.approx(plain, abs=0.4)
    assert plain > 90


def test_a_share_is_drawn_without_repetition():
    objects = make_objects(np.zeros(10), x=np.arange(10)[:, None])
    drawn = draw_objects(objects, 0.8, seed=0)
    found = drawn.features['x'][:, 0].tolist()
    assert len(set(found)) == 8
    assert found == sorted(found)
    assert draw_objects(objects, 0.8, seed=1).features['x'][:, 0].tolist() != found
