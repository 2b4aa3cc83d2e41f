"""What verdict, table and page read off a record, of one whose arithmetic can be done by hand."""

import math

import pytest

from mmgslora.errors import ForgettingError
from mmgslora.records.record import (
    class_groups,
    found_keys,
    hardest_hit,
    mean_before,
    metric_prefix,
    number,
    share_kept,
    task_summary,
    unfinished,
    values_before,
)


@pytest.fixture
def record():
    """The second of three tasks: b goes, a is gone, c and d stay, and e, of which are no images."""
    before = dict(a=80.0, b=60.0, c=40.0, d=20.0, e=50.0)
    now = dict(a=1.0, b=3.0, c=30.0, d=18.0, e=20.0)
    metrics = {'AP_f': 3.0, 'AP_r': 24.0, 'AP_o': 1.0, 'AP_m': 20.0, 'H': 33.0}
    found = {'AR_f@0.05': 40.0, 'AR_f@0.3': 10.0, 'AR_f@0.1': 20.0, 'forgotten_name_rate': 5.0}
    task = dict(task=2, forget=['b'], old=['a'], retain=['c', 'd'], missing=['e'], per_class=now)
    task.update(metrics={**metrics, **found}, groups=dict(x=0.0, y=1e-9, z=0.5), train_seconds=7)
    pretrained = {'per_class': before, 'every_query/per_class': dict(a=88.0, b=66.0)}
    protocol = dict(tasks=[['a'], ['b'], ['c']])
    return dict(tasks=[task], pretrained=pretrained, protocol=protocol)


def test_a_line_of_the_table(record):
    """Of what goes and went the original counts every query; of what stays the listed ones."""
    (task,) = record['tasks']
    line = task_summary(record, task)
    assert {k: line[k] for k in 'fromh'} == dict(f=3.0, r=24.0, o=1.0, m=20.0, h=33.0)
    before = {k: line[f'{k}_before'] for k in 'from'}
    assert before == dict(f=66.0, r=30.0, o=88.0, m=50.0)
    assert line['share'] == pytest.approx(24 / 30)
    assert line['hit'] == dict(name='e', now=20.0, before=50.0, share=0.4)
    assert (line['zero'], line['groups'], line['seconds']) == (1, 3, 7.0)
    assert line['found'] == [10.0, 20.0, 40.0, 5.0]
    strictest_first = ['AR_f@0.3', 'AR_f@0.1', 'AR_f@0.05', 'forgotten_name_rate']
    assert found_keys([task]) == strictest_first


def test_the_hardest_hit_has_lost_the_largest_share_of_its_own(record):
    """d has less than c in the end, and kept more of what it had."""
    (task,) = record['tasks']
    task['missing'] = []
    assert hardest_hit(record, task)['name'] == 'c'
    assert hardest_hit(record, task, known_from=40.0) is None
    task['per_class'].update(c=math.nan)
    assert hardest_hit(record, task)['name'] == 'd'
    record['pretrained']['per_class']['d'] = 0.0  # nothing to lose
    assert hardest_hit(record, task) is None


def test_a_share_is_of_classes_that_were_measured_twice(record):
    (task,) = record['tasks']
    task['per_class']['c'] = None
    assert share_kept(record, task) == pytest.approx(18 / 20)
    assert share_kept(record, task, ['e']) == pytest.approx(0.4)
    record['pretrained']['per_class']['d'] = math.nan
    assert share_kept(record, task) is None
    record['pretrained']['per_class'].update(d=0.0)
    assert share_kept(record, task, ['d']) is None


def test_what_the_original_had(record):
    assert values_before(record)['a'] == 80.0
    assert values_before(record, gone=True) == dict(a=88.0, b=66.0, c=40.0, d=20.0, e=50.0)
    assert mean_before(record, 'ab') == 70.0 and mean_before(record, 'ab', gone=True) == 77.0
    assert mean_before(record, ['nobody']) is None
    assert [number(x) for x in (None, math.nan, 3)] == [None, None, 3.0]


def test_the_metric_is_the_one_that_has_both_sides(record):
    (task,) = record['tasks']
    assert metric_prefix(record) == 'AP_'
    task['metrics'] = {'paper/AP_f': 1.0, 'paper/AP_r': 1.0, 'IoU_f': 1.0, 'Acc_f': 1, 'Acc_r': 2}
    assert metric_prefix(record) == 'Acc_'
    del task['metrics']['Acc_r']
    with pytest.raises(ForgettingError, match='they are: paper/AP_f, paper/AP_r, IoU_f, Acc_f'):
        metric_prefix(record)


def test_requests_that_are_left(record):
    assert unfinished(record).startswith('The run is unfinished: 1 of its 3 requests is served')
    record['tasks'] *= 3
    assert unfinished(record) == ''
    record['tasks'] = record['tasks'][:2]
    assert '2 of its 3 requests are served' in unfinished(record)


def test_classes_by_letter(record):
    (task,) = record['tasks']
    assert class_groups(task) == dict(r=['c', 'd'], m=['e'], f=['b'], o=['a'])
