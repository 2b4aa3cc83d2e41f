import pytest

from mmgslora.audit.relearning import Curve, area_between, relearning_curve, steps_to_oracle

from .flat import FORGOTTEN, FlatImages, head_cut, oracle

TRAIN, HELD_OUT = FlatImages(40, seed=0), FlatImages(40, seed=1)


def test_area_leaves_the_start_out():
    ours = Curve((0, 5, 10), (7.0, 20.0, 40.0))
    theirs = Curve((0, 5, 10), (0.0, 10.0, 44.0))
    assert area_between(ours, theirs) == (10 - 4) / 2
    assert area_between(theirs, theirs) == 0
    assert ours.at(10) == 40


def test_steps_until_the_oracles_end():
    theirs = Curve((0, 5, 10, 20), (0.0, 10.0, 20.0, 30.0))
    assert steps_to_oracle(Curve((0, 5, 10, 20), (0.0, 30.0, 29.0, 50.0)), theirs) == 5
    assert steps_to_oracle(Curve((0, 5, 10, 20), (31.0, 0.0, 0.0, 0.0)), theirs) == 0
    assert steps_to_oracle(Curve((0, 5, 10, 20), (0.0, 0.0, 0.0, 29.9)), theirs) is None


def test_what_is_only_hidden_comes_back_first():
    curves = [
        relearning_curve(audited, TRAIN, HELD_OUT, FORGOTTEN, 8, 0, steps=(0, 5, 20), lr=0.1)
        for audited in (head_cut(), oracle())
    ]
    for curve in curves:
        assert curve.at(0) == 0
    assert curves[0].at(20) > 95
    # A model that is blind to the difference names one class of two at most.
    assert curves[1].at(20) <= 51
    assert area_between(*curves) > 20


def test_start_is_not_measured_again():
    measured = []

    class Counting(type(head_cut())):
        def evaluate(self, *args, **kwargs):
            measured.append(1)
            return super().evaluate(*args, **kwargs)

    audited = Counting([1.0, 1.0])
    arguments = (audited, TRAIN, HELD_OUT, FORGOTTEN, 4, 0)
    plain = relearning_curve(*arguments, steps=(0, 2), measured_on=10)
    assert len(measured) == 2
    known = relearning_curve(*arguments, steps=(0, 2), measured_on=10, at_start=12.0)
    assert len(measured) == 3
    assert known.values == (12.0, plain.values[1])


@pytest.mark.parametrize('most', [6, None])
def test_curve_is_measured_on_images_of_the_classes(most):
    seen = []

    class Spy(type(head_cut())):
        def evaluate(self, data, images=None, gone=()):
            seen.append((list(images), list(gone)))
            return super().evaluate(data, images, gone)

    audited = Spy([1.0, 1.0])
    relearning_curve(audited, TRAIN, HELD_OUT, FORGOTTEN, 4, 0, steps=(0, 1), measured_on=most)
    assert len(seen[0][0]) == (most or 80)
    assert {HELD_OUT.truth[i] for i in seen[0][0]} == set(FORGOTTEN)
    assert seen[0] == seen[1]
    assert seen[0][1] == FORGOTTEN
