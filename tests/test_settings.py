from typing import Annotated, Literal

import pytest
from pydantic import Field

from mmgslora.errors import ForgettingError
from mmgslora.settings import (
    Count,
    NonNegative,
    PerTask,
    PositiveShare,
    allowed_values,
    checked,
    problems,
    settings_of,
)


class Base:
    @checked
    def __init__(self, alpha: NonNegative = 0.5, mode: Literal['a', 'b'] = 'a') -> None:
        self.alpha, self.mode = alpha, mode


class Child(Base):
    @checked
    def __init__(self, beta: PerTask, steps: Count | None = None, on: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        (dict(beta=-1), 'Child: beta is -1; it can be a number from 0 up, or a list of them'),
        (dict(beta=[]), 'beta is []'),
        (dict(beta='1'), "beta is '1'"),
        (dict(beta=float('nan')), 'beta is nan'),
        (dict(beta=[1, float('inf')]), 'beta is [1, inf]'),
        (dict(beta=True), 'beta is True'),
        (dict(beta=1, steps=1.5), 'steps is 1.5; it can be a whole number from 1 up or None.'),
        (dict(beta=1, steps=True), 'steps is True'),
        (dict(beta=1, on='no'), "on is 'no'; it can be True or False."),
        (dict(beta=1, mode='c'), "mode is 'c'; it can be a or b."),
        (dict(beta=1, alpha=-2), 'alpha is -2; it can be a number from 0 up.'),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_would(settings, said):
    with pytest.raises(ForgettingError) as refused:
        Child(**settings)
    assert said in str(refused.value)
    assert any(said in line for line in problems(Child, settings, 'Child'))


@pytest.mark.parametrize('beta', [0, 1, 0.5, [1, 2.5], (0.1, 0.2)])
def test_values_that_fit_pass_as_they_are(beta):
    assert Child(beta, steps=3, alpha=1).beta == beta
    assert problems(Child, dict(beta=beta), 'method') == []


def test_all_problems_are_listed_at_once():
    found = problems(Child, dict(alfa=0.1, mode='c', steps=0), 'model.method')
    assert len(found) == 4
    assert "model.method has no setting 'alfa' (did you mean 'alpha'?)" in found[0]
    assert any("lacks 'beta'" in line for line in found)


def test_settings_go_on_to_the_next_class_only_through_kwargs():
    assert list(settings_of(Child)) == ['alpha', 'mode', 'beta', 'steps', 'on']
    assert list(settings_of(Base)) == ['alpha', 'mode']


@pytest.mark.parametrize(
    ('annotation', 'words'),
    [
        (PositiveShare, 'a number above 0, at most 1'),
        (list[int] | None, 'a list, each a whole number or None'),
        (Annotated[str, Field(description='a name')], 'a name'),
    ],
)
def test_an_annotation_in_words(annotation, words):
    assert allowed_values(annotation) == words
