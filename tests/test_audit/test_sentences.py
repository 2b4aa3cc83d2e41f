"""What an audit's numbers are said to mean is true of them."""

import pytest

from mmgslora.audit.rows import AuditRows
from mmgslora.audit.sentences import sentence


def said(kind, **measured):
    """The sentence where each measure of the kind has a value of each model."""
    rows = [
        dict(measure=f'{kind}/{name}', model=model, value=value)
        for name, of_models in measured.items()
        for model, value in of_models.items()
    ]
    return sentence(AuditRows(dict(rows=rows)), kind)


@pytest.mark.parametrize('kind', ['output', 'localisation', 'membership', 'divergence', 'damage'])
def test_the_model_that_forgot_may_be_left_out(kind):
    text = said(kind, forget=dict(original=80.0, oracle=9.0))
    assert text == 'The model after forgetting was not measured.'


def test_only_a_control_stands_beside():
    text = said('output', AP_gone={'unlearned': 1.0, 'head only': 0.0})
    assert text == 'Neither the original nor an oracle is there to compare these numbers with.'


def test_classes_that_all_gained_have_lost_nothing():
    text = said('damage', ring=dict(unlearned=-3.0), star=dict(unlearned=-1.24))
    assert text == 'No class that stays has lost points; star has gained least: 1.2 points.'
    assert said('damage', ring=dict(unlearned=-0.04)) == 'ring has lost most: 0.0 points.'


@pytest.mark.parametrize(
    ('draws', 'end'),
    [
        ((62.0, 60.0), '20.5 points of lead are knowledge that was left behind.'),
        ((40.53, 40.53), '0.03 points of lead, less than the draws of one of the two lie apart.'),
    ],
)
def test_a_lead_is_said_with_what_it_is_worth(draws, end):
    measure = 'relearning/k16/step20'
    values = [('unlearned', x) for x in draws] + [('oracle', 40.0), ('oracle', 41.0)]
    rows = [dict(measure=measure, model=model, value=value) for model, value in values]
    assert sentence(AuditRows(dict(rows=rows)), 'relearning').endswith(f' %: {end}')
