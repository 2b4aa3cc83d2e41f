"""What every method hands on to its parts, and what a task and a moment say of themselves."""

from types import SimpleNamespace

import pytest

from mmgslora.methods.base import Context, Method, Part, Task, of_task, task_terms

from .views import context as made_context
from .views import labels, view

MOMENTS = ('before_task', 'before_iter', 'before_step', 'after_step', 'after_task')


class One(Part):
    """Writes down what it is asked."""

    def __init__(self, done=True):
        self.heard, self.done = [], done
        for name in (*MOMENTS, 'check', 'check_epochs', 'load_state_dict'):
            setattr(self, name, lambda given, name=name: self.heard.append((name, given)))
        self.check_files = lambda model, tasks: self.heard.append(('check_files', model, tasks))

    def settled(self, context):
        return self.done

    def files(self, tasks):
        return [f'{type(self).__name__}_{tasks}']

    def state_dict(self):
        return dict(of=type(self).__name__)

    def summary(self):
        return {type(self).__name__: 1}


class Two(One):
    pass


class OfParts(Method):
    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def losses(self, views, context):
        return {}


def test_each_part_hears_of_everything():
    parts = One(), Two()
    method = OfParts(*parts)
    for name in (*MOMENTS, 'check', 'check_epochs'):
        getattr(method, name)(name.upper())
    method.check_files('model', 3)
    expected = [(name, name.upper()) for name in (*MOMENTS, 'check', 'check_epochs')]
    for part in parts:
        assert part.heard == [*expected, ('check_files', 'model', 3)]
    assert method.files(2) == ['One_2', 'Two_2'] and method.summary() == dict(One=1, Two=1)
    assert not method.dropout and method.sides_of(None) == ('forget', 'retain')


def test_each_part_gets_back_what_it_gave():
    parts = One(), Two()
    state = OfParts(*parts).state_dict()
    assert state == dict(One=dict(of='One'), Two=dict(of='Two'))
    OfParts(*parts).load_state_dict(dict(Two=state['Two']))  # a checkpoint of before there was One
    heard = [part.heard for part in parts]
    assert heard == [[('load_state_dict', {})], [('load_state_dict', dict(of='Two'))]]


@pytest.mark.parametrize('settled', [(True, True), (True, False), (False, True)])
def test_a_method_is_settled_where_all_of_its_parts_are(settled):
    assert OfParts(*map(One, settled)).settled(None) == all(settled)


def test_what_a_task_is_about():
    task = Task(2, tuple('abcde'), *map(labels, ([3], [0, 4], [1], [2])))
    assert task.must_be_gone.tolist() == [3, 1]
    assert [task.of(side).tolist() for side in ('forget', 'retain')] == [[3], [0, 4]]
    assert [of_task([0.1, 0.2], task), of_task([0.1], task), of_task(0.3, task)] == [0.2, 0.1, 0.3]


def test_terms_are_named_by_their_side():
    found = {key: value.item() for key, value in task_terms(view('retain', 2.0, [[0.0]])).items()}
    assert found == dict(retain_loss_cls=2.0, retain_loss_bbox=0.5, retain_loss_iou=0.25)


def test_whether_another_pass_shows_other_images():
    """Images to forget that are drawn anew are enough; a loader that does not say draws anew."""
    found = []
    for redraw in (True, 'forget', False):
        loader = SimpleNamespace(dataset=SimpleNamespace(redraw=redraw))
        found.append(made_context(loader=loader).redraws)
    assert found == [True, True, False] and made_context(loader=[]).redraws
    assert Context(None, None, step=3, steps=4).progress == 0.75
