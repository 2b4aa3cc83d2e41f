import pytest

from mmgslora.audit.rows import AuditRows, Spread, curve_point
from mmgslora.audit.sentences import sentence
from mmgslora.errors import ForgettingError


def rows(*values):
    return AuditRows({'rows': [dict(zip(('model', 'measure', 'value'), row)) for row in values]})


def test_seeds_are_brought_together():
    audit = rows(('unlearned', 'a/b', 1.0), ('unlearned', 'a/b', 4.0), ('oracle', 'a/b', 2.0))
    assert audit.value('a/b', 'unlearned') == Spread(mean=2.5, low=1.0, high=4.0, seeds=2)
    assert audit.gap('a/b') == 0.5 and audit.has_oracle


def test_what_was_not_measured_is_none():
    audit = rows(
        ('unlearned', 'a/b', None), ('unlearned', 'a/c', float('nan')), ('oracle', 'a/b', 2.0)
    )
    assert audit.value('a/b', 'unlearned') is None and audit.value('a/c', 'unlearned') is None
    assert audit.gap('a/b') is None and audit.gap('nothing') is None and not audit.has_oracle


def test_a_seed_without_a_value_leaves_no_mean():
    """Ten steps and twice never are not ten steps."""
    audit = rows(*(('unlearned', 'relearning/k16/steps_to_oracle', v) for v in (10, None, None)))
    assert audit.value('relearning/k16/steps_to_oracle', 'unlearned') is None


def test_models_stand_from_before_to_oracle():
    audit = rows(*((model, 'a', 1) for model in ('oracle', 'other', 'unlearned', 'original')))
    assert audit.models == ['original', 'unlearned', 'other', 'oracle']


def test_the_highest_of_several_oracles_is_compared_with():
    oracles = [('oracle', 'a', 2.0), ('oracle 2', 'a', 3.0), ('oracle 3', 'b', 9.0)]
    audit = rows(('unlearned', 'a', 7.0), *oracles, ('oracles', 'a', 9.0))
    assert audit.gap('a') == 4.0 and audit.highest('a').mean == 3.0
    assert audit.models == ['unlearned', 'oracles', 'oracle', 'oracle 2', 'oracle 3']


def test_draws_that_lie_further_apart_than_the_gap():
    values = [('unlearned', 'a', 5.0), ('unlearned', 'a', 7.0), ('oracle', 'a', 4.0)]
    assert not rows(*values).is_close('a')  # 2 apart, 2 the gap
    assert rows(*values, ('oracle', 'a', 5.0)).is_close('a')
    assert not rows(*values[:2]).is_close('a')


def test_what_no_object_is_called_is_none_of_them():
    values = [
        ('unlearned', 'called ring', 12.0),
        ('unlearned', 'found', 1.0),
        ('oracle', 'found', 9),
    ]
    audit = rows(*((model, f'outcomes/{name}', value) for model, name, value in values))
    assert audit.value('outcomes/called ring', 'oracle').mean == 0
    assert audit.gap('outcomes/called ring') == 12
    assert audit.value('outcomes/called ring', 'original') is None
    assert sentence(audit, 'outcomes').count('most often called') == 1


def test_kinds_are_whole_words():
    assert rows(('unlearned', 'probe/x', 1), ('unlearned', 'probes/x', 1)).of('probe') == [
        'probe/x'
    ]


@pytest.mark.parametrize(
    ('measure', 'point'),
    [
        ('relearning/k16/step20', (16, 20)),
        ('relearning/4/0', (4, 0)),
        ('relearning/k16/lead', None),
        ('relearning/k16/step20/extra', None),
        ('relearning/step20', None),
    ],
)
def test_points_of_a_curve_are_told_from_other_measures(measure, point):
    assert curve_point(measure) == point


def test_curves_are_in_the_order_of_their_steps():
    audit = rows(
        ('unlearned', 'relearning/k4/step10', 3),
        ('unlearned', 'relearning/k4/step5', 2),
        ('unlearned', 'relearning/k1/step5', 1),
        ('unlearned', 'relearning/k4/lead', 9),
    )
    curves = audit.curves()
    assert list(curves) == [1, 4]
    assert [(step, value.mean) for step, value in curves[4]['unlearned']] == [(5, 2), (10, 3)]


@pytest.mark.parametrize('row', [{'model': 'unlearned', 'measure': 'a'}, 'text', {'value': 1}])
def test_a_row_that_is_none_is_refused(row):
    with pytest.raises(ForgettingError, match='must have a model, a measure and a value'):
        AuditRows({'rows': [row]})
