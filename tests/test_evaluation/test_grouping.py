import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.evaluation import group_by_partition, harmonic_mean

TASK_2 = ClassPartition(
    task=2, forget=('cat', 'dog'), retain=('cup', 'car'), old=('bus',), missing=('pen',)
)
AFTER = {'cat': 2.0, 'dog': 6.0, 'cup': 40.0, 'car': 20.0, 'bus': 1.0, 'pen': 15.0}
BEFORE = {'cat': 50.0, 'dog': 30.0, 'cup': 44.0, 'car': 24.0, 'bus': 60.0, 'pen': 25.0}


def test_all_groups_by_hand():
    # AP_f = (2 + 6) / 2, AP_r = (40 + 20) / 2, Drop = (50 + 30) / 2 - 4 = 36,
    # H = 2 * 30 * 36 / (30 + 36) = 2160 / 66.
    assert group_by_partition(AFTER, TASK_2, BEFORE) == pytest.approx(
        {'AP_f': 4, 'AP_r': 30, 'AP_o': 1, 'AP_m': 15, 'Drop': 36, 'H': 2160 / 66}
    )


def test_prefix_names_the_value_but_not_drop_and_h():
    grouped = group_by_partition(AFTER, TASK_2, BEFORE, prefix='Acc')
    assert list(grouped) == ['Acc_f', 'Acc_r', 'Acc_o', 'Acc_m', 'Drop', 'H']


def test_old_and_missing_only_where_there_are_such_classes():
    first = ClassPartition(task=1, forget=('cat',), retain=('cup', 'car'))
    assert first.groups() == {'f': ('cat',), 'r': ('cup', 'car')}
    assert group_by_partition(AFTER, first) == {'AP_f': 2, 'AP_r': 30}


def test_no_drop_without_the_pretrained_model():
    assert {'Drop', 'H'}.isdisjoint(group_by_partition(AFTER, TASK_2))


@pytest.mark.parametrize('gone', ['absent', 'nan'])
def test_class_without_ground_truth_is_in_no_mean(gone):
    after, before = dict(AFTER), dict(BEFORE)
    for values in (after, before):
        for name in ('dog', 'car', 'bus'):
            if gone == 'nan':
                values[name] = math.nan
            else:
                del values[name]
    # Drop = 50 - 2, H = 2 * 40 * 48 / 88.
    assert group_by_partition(after, TASK_2, before) == pytest.approx(
        {'AP_f': 2, 'AP_r': 40, 'AP_m': 15, 'Drop': 48, 'H': 3840 / 88}
    )


def test_drop_is_left_out_where_a_forgotten_class_has_no_pretrained_value():
    assert 'Drop' not in group_by_partition(AFTER, TASK_2, {'cat': 50.0})
    assert 'Drop' not in group_by_partition(AFTER, TASK_2, {})


def test_no_values_at_all():
    assert group_by_partition({}, TASK_2, {}) == {}
    assert group_by_partition({'cat': 3.0}, TASK_2, BEFORE) == {'AP_f': 3, 'Drop': 47}


def test_h_is_zero_where_nothing_was_forgotten_or_nothing_is_left():
    better = group_by_partition({**AFTER, 'cat': 60.0, 'dog': 40.0}, TASK_2, BEFORE)
    assert (better['Drop'], better['H']) == (-10, 0)
    same = group_by_partition({**AFTER, 'cat': 50.0, 'dog': 30.0}, TASK_2, BEFORE)
    assert (same['Drop'], same['H']) == (0, 0)
    ruined = group_by_partition({**AFTER, 'cup': 0.0, 'car': 0.0}, TASK_2, BEFORE)
    assert (ruined['Drop'], ruined['H']) == (36, 0)


def test_published_h():
    assert round(harmonic_mean(44.15, 40.45), 2) == round(2 * 44.15 * 40.45 / 84.60, 2) == 42.22


percent = st.floats(0, 100)


@given(percent, st.floats(-100, 100))
def test_h_lies_between_its_two_parts(retained, drop):
    h = harmonic_mean(retained, drop)
    if retained <= 0 or drop <= 0:
        assert h == 0
    else:
        assert min(retained, drop) - 1e-9 <= h <= max(retained, drop) + 1e-9


@given(st.lists(percent, min_size=6, max_size=6), st.permutations(sorted(AFTER)))
def test_order_of_the_classes_is_of_no_matter(values, order):
    after = dict(zip(AFTER, values))
    shuffled = {name: after[name] for name in order}
    assert group_by_partition(shuffled, TASK_2, BEFORE) == group_by_partition(after, TASK_2, BEFORE)
