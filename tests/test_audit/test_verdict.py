import pytest

from mmgslora.audit.verdict import FORGOTTEN, HIDDEN, NOT_FORGOTTEN, OUTPUT_ONLY, judge


@pytest.mark.parametrize(
    ('forgotten', 'probe_gap', 'relearning_gap', 'expected'),
    [
        (2.0, 2.0, 0.0, FORGOTTEN),
        (0.0, -5.0, -9.0, FORGOTTEN),
        (2.1, 0.0, 0.0, NOT_FORGOTTEN),
        (80.0, None, None, NOT_FORGOTTEN),
        (0.0, 2.1, 0.0, HIDDEN),
        (0.0, 0.0, 0.1, HIDDEN),
        (0.0, None, 0.1, HIDDEN),
        (0.0, 2.1, None, HIDDEN),
        (0.0, None, None, OUTPUT_ONLY),
        (0.0, 0.0, None, OUTPUT_ONLY),
        (0.0, None, -3.0, OUTPUT_ONLY),
    ],
)
def test_each_case(forgotten, probe_gap, relearning_gap, expected):
    assert judge(forgotten, probe_gap, relearning_gap).verdict == expected


def test_limits_are_the_users():
    limits = dict(forgotten_max=5.0, probe_gap_max=10.0, retained_min_share=0.9)
    found = judge(4.0, 9.0, 0.0, limits)
    assert found.verdict == FORGOTTEN
    assert found.limits == dict(forgotten_max=5.0, probe_gap_max=10.0, relearning_gap_max=0.0)


def test_rounding_does_not_decide():
    assert judge(0.0, 0.0, 1e-13).verdict == FORGOTTEN


def test_reason_names_what_decided():
    reason = judge(0.5, 12.34, 3.0).reason
    assert 'probe is 12.3 points' in reason
    assert 'relearning is 3.0 points' in reason
    assert 'probe' not in judge(0.5, 0.0, 3.0).reason
    assert 'relearning gap' in judge(0.5, 0.0, None).reason


def test_what_the_oracle_has_is_allowed():
    # AP is a ranking: a class that was never shown can have some.
    assert judge(12.4, 0.0, 0.0, oracle_forgotten=12.4).verdict == FORGOTTEN
    assert judge(12.5, 0.0, 0.0, oracle_forgotten=12.4).verdict == NOT_FORGOTTEN
    assert judge(1.9, 0.0, 0.0, oracle_forgotten=0.0).verdict == FORGOTTEN
