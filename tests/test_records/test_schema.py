"""Files that no run can have written are refused in one sentence that says where."""

import copy
import json
import math

import pytest
from test_report.records import shapes_record
from test_report.runs import audit_of, make_run

from mmgslora.errors import ForgettingError
from mmgslora.records.finished_run import FinishedRun
from mmgslora.records.schema import check_consistency


def change(content, place, value):
    content = copy.deepcopy(content)
    found = content
    for part in place[:-1]:
        found = found[part]
    found[place[-1]] = value
    return content


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        (('tasks', 0, 'metrics', 'AP_f'), 'low', '"low" as tasks.0.metrics.AP_f'),
        (('tasks', 1, 'per_class', 'star'), 'low', '"low" as tasks.1.per_class.star'),
        (('tasks', 1, 'per_class'), 3, '3 as tasks.1.per_class; input should be a valid dict'),
        (('tasks', 0, 'train_seconds'), '8 s', '"8 s" as tasks.0.train_seconds'),
        (('tasks', 0, 'groups'), {'a': 'x'}, '"x" as tasks.0.groups.a; input should be a valid n'),
        (('tasks', 0, 'task'), 'one', '"one" as tasks.0.task; input should be a valid integer'),
        (('tasks', 0), 'task', 'as tasks.0; input should be'),
        (('tasks',), {}, 'as tasks; input should be a valid list'),
        (('pretrained', 'per_class', 'star'), [], 'as pretrained.per_class.star'),
        (('pretrained',), None, 'holds no values of the pre-trained model'),
        (('config',), 7, '7 as config; input should be a valid string'),
        (('original',), ['a'], 'as original; input should be a valid string'),
        (('protocol', 'tasks'), 'all', '"all" as protocol.tasks; input should be a valid list'),
        (('tasks', 0, 'forget'), [], 'as tasks.0.forget; list should have at least 1 item'),
    ],
)
def test_text_where_a_number_belongs(tmp_path, place, value, message):
    work_dir = make_run(tmp_path, shapes_record())
    (work_dir / 'forgetting.json').write_text(json.dumps(change(shapes_record(), place, value)))
    with pytest.raises(ForgettingError) as refused:
        FinishedRun(work_dir)
    assert message in str(refused.value) and '\n' not in str(refused.value)
    assert 'forgetting.json' in str(refused.value)


def test_what_a_record_lacks_is_named(tmp_path):
    record = shapes_record()
    del record['tasks'][1]['metrics']
    with pytest.raises(ForgettingError, match='null as tasks.1.metrics; field required'):
        FinishedRun(make_run(tmp_path, record))


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        (('tasks', 0, 'metrics', 'AP_f'), -400, '-400 as AP_f of task 1, which is a percentage'),
        (('tasks', 1, 'metrics', 'paper/AP_r'), 101, '101 as paper/AP_r of task 2'),
        (('tasks', 1, 'metrics', 'AR_f@0.3'), -1, '-1 as AR_f@0.3 of task 2'),
        (('tasks', 0, 'per_class', 'hexagon'), 1e3, '1000 as hexagon of task 1'),
        (('tasks', 0, 'metrics', 'AP_f'), 0.5, '0.5 as AP_f of task 1, the mean of its classes is'),
        (('tasks', 0, 'task'), 2, 'task 2 in the place of task 1'),
        (('tasks', 1, 'task'), 3, 'task 3 in the place of task 2'),
        (('tasks', 1, 'retain'), ['triangle', 'cross'], "other classes in task 2 .* 'hexagon'"),
        (('tasks', 1, 'retain'), ['triangle', 'cross', 'hexagon', 'x'], "in task 2 .* 'x'"),
        (('tasks', 1, 'retain'), ['triangle', 'cross', 'hexagon', 'star'], "twice: 'star'"),
        (('tasks', 1, 'per_class'), dict(star=1.0), "other classes in task 2 .* 'circle'"),
        (('tasks', 1, 'old'), ['circle'], "other classes in task 2 .* 'square'"),
        (('pretrained', 'per_class'), dict(star=80.0), "other classes in task 1 .* 'circle'"),
        (('protocol', 'tasks'), [['circle'], ['star']], 'a task 1 that the protocol does not have'),
        (('protocol', 'tasks'), [['circle', 'square']], 'a task 2 that the protocol does not have'),
    ],
)
def test_what_no_run_writes_is_refused(place, value, message):
    with pytest.raises(ForgettingError, match=message):
        check_consistency(change(shapes_record(), place, value), 'forgetting.json')


def test_a_class_does_not_come_back_among_those_that_stay():
    record = shapes_record()
    record['tasks'][1]['old'].remove('circle')
    record['tasks'][1]['retain'].append('circle')
    with pytest.raises(ForgettingError, match='other old classes in task 2 than the tasks before'):
        check_consistency(record, 'forgetting.json')


def test_what_a_run_writes_is_accepted():
    check_consistency(shapes_record(missing=('ring',)), 'forgetting.json')
    record = shapes_record()
    record['tasks'].pop()  # stopped after the first of two tasks
    check_consistency(record, 'forgetting.json')
    record = change(shapes_record(), ('tasks', 0, 'per_class', 'circle'), math.nan)
    record['tasks'][0]['metrics'].update({'Drop': -3.0, 'coco/per_class': dict(circle=None)})
    check_consistency(record, 'forgetting.json')
    # A later request in a run of its own: what went before is old from the start.
    record = shapes_record()
    for task in record['tasks']:
        task['retain'].remove('cross')
        task['old'].append('cross')
    check_consistency(record, 'forgetting.json')


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        (('rows', 0, 'value'), 'high', 'a value that is a number or null'),
        (('rows', 0, 'measure'), 3, 'must have a model, a measure and a value'),
        (('rows', 0, 'model'), None, 'must have a model, a measure and a value'),
        (('rows',), 'none', 'audit.json\' has "none" as rows; input should be a valid list'),
        (('task',), 'two', '"two" as task; input should be a valid integer'),
        (('files', 'oracle'), 'x.pth', '"x.pth" as files.oracle'),
        (('nearest',), ['circle'], 'as nearest; input should be a valid dictionary'),
        (('units', 'probe:oracle'), 1, '1 as units.probe:oracle'),
    ],
)
def test_an_audit_that_is_none(tmp_path, place, value, message):
    work_dir = make_run(tmp_path, shapes_record())
    audit = change(audit_of(shapes_record()), place, value)
    (work_dir / 'audit.json').write_text(json.dumps(audit))
    with pytest.raises(ForgettingError) as refused:
        FinishedRun(work_dir)
    assert message in str(refused.value) and 'audit.json' in str(refused.value)
