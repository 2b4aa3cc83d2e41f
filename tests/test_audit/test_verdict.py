"""One verdict: the same cases through the rule itself, the audit's record, certificate and page."""

import hashlib
import json
import re

import pytest

from mmgslora.audit.measures import Settings
from mmgslora.audit.record import AuditRecord
from mmgslora.audit.rows import AuditRows
from mmgslora.audit.verdict import (
    CAME_BACK,
    FORGOTTEN,
    HIDDEN,
    NOT_FORGOTTEN,
    NOT_SHOWN,
    OUTPUT_ONLY,
    TOO_COSTLY,
    judge_request,
    limits_of,
    worst,
)
from mmgslora.records.finished_run import FinishedRun
from mmgslora.report import charts
from mmgslora.report.certificate import certificates_of
from mmgslora.report.page import report_page


def record_of(forgotten, kept=60.0, latest=None, at_random=0.2):
    """A run that forgets 'a', and 'b' in a second task if there is a ``latest`` AP of 'a'."""
    before = dict(a=80.0, c=60.0) if latest is None else dict(a=80.0, b=80.0, c=60.0)
    first = dict(task=1, forget=['a'], old=[], missing=[])
    first['retain'] = ['c'] if latest is None else ['b', 'c']
    first['per_class'] = dict(before, a=forgotten, c=kept)
    first['metrics'] = {'AP_f': forgotten, 'AP_r': kept, 'random/AP_f': at_random}
    record = dict(config='run.py', seed=0, versions={}, tasks=[first])
    record['pretrained'] = dict(per_class=before)
    if latest is not None:
        second = dict(task=2, forget=['b'], old=['a'], retain=['c'], missing=[])
        second['per_class'] = dict(a=latest, b=0.0, c=kept)
        second['metrics'] = dict(AP_f=0.0, AP_r=kept, AP_o=latest)
        record['tasks'].append(second)
    return record


def rows_of(
    unlearned=0.0, oracle=None, probe=None, relearning=None, new_head=None, first=None, k64=None
):
    """Rows of an audit; a pair is what the unlearned model and the oracle have."""
    rows = [('output/per_class/a', 'unlearned', unlearned)]
    if oracle is not None:
        rows += [(f'output/per_class/{name}', 'oracle', oracle) for name in 'ab']
    pairs = {
        'probe/encoder': probe and (99, 0),  # a map of the image counts for nothing
        'probe/first': first,
        'probe/last': probe,
        'relearning/k16/step20': relearning,
        'new_head/k16/step20': new_head,
        'relearning/k64/step20': k64,
    }
    for measure, pair in pairs.items():
        for model, value in zip(('unlearned', 'oracle'), pair or ()):
            rows.append((measure, model, value))
    return [dict(measure=m, model=model, seed=None, value=v) for m, model, v in rows]


NEAR = dict(probe=(82, 80), relearning=(20, 20), new_head=(9, 9))

# What the run measured, what the audit measured (None: there was none), the one verdict.
CASES = {
    'at every limit': (dict(forgotten=2, kept=57), dict(oracle=0, **NEAR), FORGOTTEN),
    'as forgotten as the oracle': (dict(forgotten=12.4), dict(oracle=12.4, **NEAR), FORGOTTEN),
    'issue 10': (dict(forgotten=10), dict(oracle=12.4, **NEAR), FORGOTTEN),
    'more than the oracle': (dict(forgotten=12.5), dict(oracle=12.4, **NEAR), NOT_FORGOTTEN),
    'no oracle measured': (dict(forgotten=10), dict(), NOT_FORGOTTEN),
    'no audit, still there': (dict(forgotten=2.1), None, NOT_FORGOTTEN),
    'as a random order': (dict(forgotten=4.6, at_random=4.6), None, OUTPUT_ONLY),
    'more than a random order': (dict(forgotten=4.7, at_random=4.6), None, NOT_FORGOTTEN),
    'no audit': (dict(forgotten=0), None, OUTPUT_ONLY),
    'audit without an oracle': (dict(forgotten=0), dict(), OUTPUT_ONLY),
    'probe': (dict(forgotten=0), dict(NEAR, oracle=0, probe=(82.1, 80)), HIDDEN),
    'probe alone': (dict(forgotten=0), dict(oracle=0, probe=(82.1, 80)), HIDDEN),
    'probe alone, near': (dict(forgotten=0), dict(oracle=0, probe=(82, 80)), OUTPUT_ONLY),
    'relearning': (dict(forgotten=0), dict(NEAR, oracle=0, relearning=(20.1, 20)), HIDDEN),
    'relearning alone': (dict(forgotten=0), dict(oracle=0, relearning=(9, 20)), OUTPUT_ONLY),
    'first layer': (dict(forgotten=0), dict(NEAR, oracle=0, first=(62.1, 60)), HIDDEN),
    'first layer, near': (dict(forgotten=0), dict(NEAR, oracle=0, first=(62, 60)), FORGOTTEN),
    '64 images': (dict(forgotten=0), dict(NEAR, oracle=0, k64=(30.1, 30)), HIDDEN),
    '64 images, near': (dict(forgotten=0), dict(NEAR, oracle=0, k64=(30, 30)), FORGOTTEN),
    'no new head': (dict(forgotten=0), dict(NEAR, oracle=0, new_head=None), OUTPUT_ONLY),
    'new head': (dict(forgotten=0), dict(NEAR, oracle=0, new_head=(9.1, 9)), HIDDEN),
    'new head alone': (dict(forgotten=0), dict(oracle=0, new_head=(9.1, 9)), HIDDEN),
    'new head alone, near': (
        dict(forgotten=0),
        dict(oracle=0, probe=(80, 80), new_head=(9, 9)),
        OUTPUT_ONLY,
    ),
    'rounding': (dict(forgotten=0), dict(NEAR, oracle=0, relearning=(20 + 1e-12, 20)), FORGOTTEN),
    'price': (dict(forgotten=0, kept=56.9), dict(oracle=0, **NEAR), TOO_COSTLY),
    'price, and hidden': (
        dict(forgotten=0, kept=0.0),
        dict(NEAR, oracle=0, probe=(90, 80)),
        HIDDEN,
    ),
    'price, no audit': (dict(forgotten=0, kept=56.9), None, TOO_COSTLY),
    'nothing recorded': (dict(forgotten=None), dict(oracle=0, **NEAR), NOT_SHOWN),
    'came back': (dict(forgotten=0, latest=2.1), dict(oracle=0, **NEAR), CAME_BACK),
    'stayed away': (dict(forgotten=0, latest=2.0), dict(oracle=0, **NEAR), FORGOTTEN),
    'as the oracle in the end': (dict(forgotten=0, latest=9), dict(oracle=9, **NEAR), FORGOTTEN),
}
GONE, STAY = [f'g{i}' for i in range(10)], [f's{i}' for i in range(40)]


@pytest.mark.parametrize(
    'left, at_random, oracle, lost, expected',
    [
        (5.0, 0.1, 0.0, 0.5, FORGOTTEN),  # at both limits of a single class
        (18.0, 0.1, 0.0, 1.0, NOT_FORGOTTEN),  # a mean of 1.8
        (18.0, 1.8, 0.0, 1.0, FORGOTTEN),  # all that a random order finds may be of that class
        (18.0, 0.1, 18.0, 1.0, FORGOTTEN),  # the oracle has that class, too
        (0.0, 0.1, 0.0, 0.49, TOO_COSTLY),  # a mean of 98.7 %
    ],
)
def test_one_class_does_not_hide_behind_the_mean(left, at_random, oracle, lost, expected):
    before = {**dict.fromkeys(GONE, 80.0), **dict.fromkeys(STAY, 60.0)}
    now = {**before, **dict.fromkeys(GONE, 0.0), 'g3': left, 's7': 60.0 * lost}
    task = dict(task=1, forget=GONE, old=[], retain=STAY, missing=[], per_class=now)
    task['metrics'] = {'AP_f': left / 10, 'AP_r': 59.0, 'random/AP_f': at_random}
    record = dict(tasks=[task], pretrained=dict(per_class=before))
    measured = [(f'output/per_class/{name}', 'oracle', 0.0) for name in GONE if name != 'g3']
    measured += [('output/per_class/g3', 'oracle', oracle)]
    rows = rows_of(oracle=0.0, **NEAR)
    rows += [dict(measure=m, model=model, seed=None, value=v) for m, model, v in measured]
    verdict = judge_request(record, task, limits_of(None), AuditRows(dict(task=1, rows=rows)))
    assert verdict.verdict == expected
    if left and expected == NOT_FORGOTTEN:
        assert verdict.reason == 'AP of g3 after task 1: 18 (allowed: 5).'
    if expected == TOO_COSTLY:
        assert verdict.reason.startswith('share of its own that s7 has kept: 49.0 %')


@pytest.mark.parametrize('left, expected', [(6.5, OUTPUT_ONLY), (6.6, NOT_FORGOTTEN)])
def test_what_others_have_in_a_random_order_is_not_of_this_class(left, expected):
    """Ten classes with a mean of 1.1: together 11, but g3 has had 6.5 of them at most."""
    before = {**dict.fromkeys(GONE, 80.0), **dict.fromkeys(STAY, 60.0)}
    task = dict(task=1, forget=GONE, old=[], retain=STAY, missing=[])
    task['per_class'] = {**before, **dict.fromkeys(GONE, 0.0), 'g3': left}
    by_class = {**dict.fromkeys(GONE, 0.6), 'g3': 6.5}
    task['metrics'] = {'AP_f': left / 10, 'AP_r': 60.0, 'random/AP_f': 1.1}
    task['metrics']['random/per_class'] = by_class
    record = dict(tasks=[task], pretrained=dict(per_class=before))
    assert judge_request(record, task, limits_of(None)).verdict == expected


@pytest.mark.parametrize(
    'at_first, at_last, oracle, expected',
    [
        (5.0, 5.0, None, OUTPUT_ONLY),
        (5.1, 0.0, None, NOT_FORGOTTEN),
        (0.0, 5.1, None, CAME_BACK),
        (9.0, 9.0, 9.0, FORGOTTEN),  # the oracle is right as often, which is a name, too
    ],
)
def test_classes_that_take_each_others_names(at_first, at_last, oracle, expected):
    record = record_of(forgotten=0, latest=0)
    for task, rate in zip(record['tasks'], (at_first, at_last)):
        task['metrics'] = {k.replace('AP', 'Acc'): v for k, v in task['metrics'].items()}
        task['metrics']['forgotten_name_rate'] = rate
    audit = oracle and AuditRows(dict(task=2, rows=rows_of(oracle=oracle, **NEAR)))
    verdict = judge_request(record, record['tasks'][0], limits_of(None), audit)
    assert verdict.verdict == expected


def test_a_class_that_the_original_hardly_knew_has_nothing_to_lose():
    record = record_of(forgotten=0)
    task = record['tasks'][0]
    for values, ap in ((record['pretrained']['per_class'], 5.0), (task['per_class'], 0.1)):
        values['d'] = ap
    task['retain'] = ['c', 'd']
    record['pretrained']['per_class']['c'] = task['per_class']['c'] = 600.0  # the mean is kept
    verdict = judge_request(record, task, limits_of(None))
    assert verdict.verdict == OUTPUT_ONLY
    task['per_class']['c'] = 290.0
    assert judge_request(record, task, limits_of(None)).verdict == TOO_COSTLY


RESULTS = {FORGOTTEN: 'passed', OUTPUT_ONLY: 'incomplete', NOT_SHOWN: 'incomplete'}


@pytest.mark.parametrize('case', CASES)
def test_audit_certificate_and_page_say_one_thing(tmp_path, monkeypatch, case):
    monkeypatch.setattr(charts, 'as_svg', lambda figure: 'data:,')  # not about charts
    run, measured, expected = CASES[case]
    record = record_of(**run)
    last = record['tasks'][-1]
    (tmp_path / 'merged').mkdir()
    for task in record['tasks']:
        (tmp_path / f'merged/task_{task["task"]:02d}.pth').write_bytes(b'%d' % task['task'])
    (tmp_path / 'forgetting.json').write_text(json.dumps(record))
    if measured is not None:
        hashes = dict(unlearned=b'%d' % last['task'], original=b'before')
        if 'oracle' in measured:
            hashes['oracle'] = b'oracle'
        files = {
            role: dict(path=f'{role}.pth', sha256=hashlib.sha256(content).hexdigest())
            for role, content in hashes.items()
        }
        audit = AuditRecord(tmp_path / 'audit.json', record, last, files, Settings())
        rows = rows_of(run.get('latest') or 0.0, **measured)
        for unit in dict.fromkeys((row['measure'].rsplit('/', 1)[0], row['model']) for row in rows):
            of_it = [r for r in rows if (r['measure'].rsplit('/', 1)[0], r['model']) == unit]
            audit.add('output' if 'output' in unit[0] else unit[0], unit[1], of_it, 0.0)
        assert audit.verdict().verdict == expected
        assert json.loads((tmp_path / 'audit.json').read_text())['verdict']['verdict'] == expected
    certificates = certificates_of(FinishedRun(tmp_path))
    first = certificates[0]['verdict']
    assert first['verdict'] == expected
    assert first['result'] == RESULTS.get(expected, 'failed')
    page = report_page(FinishedRun(tmp_path))
    (headline,) = re.findall(r'<p class="headline">(.*?)</p>', page)
    assert headline.endswith(first['sentence'])
    if measured is not None:
        assert f'<dt>verdict</dt><dd>{expected}' in page


def judged(forgotten, limits=None, **measured):
    record = record_of(forgotten)
    audit = AuditRows(dict(task=1, rows=rows_of(**measured)))
    return judge_request(record, record['tasks'][0], limits_of(limits), audit)


def test_limits_are_the_users():
    limits = dict(forgotten_max=5.0, probe_gap_max=10.0)
    same = dict(oracle=0, relearning=(0, 0), new_head=(0, 0))
    assert judged(4.0, limits, probe=(9, 0), **same).verdict == FORGOTTEN
    assert judged(4.0, probe=(0, 0), **same).verdict == NOT_FORGOTTEN


def test_the_reason_names_what_decided():
    reason = judged(0.5, oracle=0, probe=(92.3, 80), relearning=(23, 20)).reason
    assert reason == (
        'probe/last, above the oracle: 12.3 (allowed: 2); '
        'relearning/k16/step20, above the oracle: 3 (allowed: 0).'
    )
    reason = judged(0.5, oracle=0, probe=(80, 80)).reason
    assert reason.startswith('AP_f after task 1: 0.5 (allowed: 2); share of their pre-trained')
    assert '100.0 % (at least 95 %)' in reason
    assert reason.endswith('above the oracle: the audit has no such comparison with the oracle.')


@pytest.mark.parametrize(
    ('forgotten', 'kept', 'said'),
    [
        (2.004, 60.0, 'AP_f after task 1: 2.004 (allowed: 2).'),
        (0.0, 56.98, 'kept by 1 retained class: 94.97 % (at least 95 %).'),  # of 60
    ],
)
def test_what_just_fails_does_not_read_as_the_limit(forgotten, kept, said):
    record = record_of(forgotten)
    task = record['tasks'][0]
    task.update(retain=['c'])
    record['pretrained']['per_class']['c'], task['per_class']['c'] = 60.0, kept
    assert judge_request(record, task, limits_of(None)).reason.endswith(said)


def test_a_run_is_as_good_as_its_worst_request():
    verdicts = [judged(value, oracle=0, **NEAR) for value in (0.0, 9.0, 1.0)]
    assert [v.verdict for v in verdicts] == [FORGOTTEN, NOT_FORGOTTEN, FORGOTTEN]
    assert worst(verdicts) is verdicts[1]


def test_a_small_gap_does_not_read_as_none():
    assert 'above the oracle: 0.048 (allowed: 0)' in judged(0, oracle=0, new_head=(1.048, 1)).reason


@pytest.mark.parametrize(
    ('original', 'probe', 'verdict'),
    [
        ((95, 60), 82, FORGOTTEN),  # both references would find the original out
        ((95, 20), 82, OUTPUT_ONLY),  # relearned no faster than what it never saw
        ((82, 60), 82, OUTPUT_ONLY),  # two points above it are allowed
        ((None, 60), 82, OUTPUT_ONLY),  # who knows
        ((82, 20), 82.1, HIDDEN),  # above even what is easier
    ],
)
def test_classes_never_seen_must_find_the_original_out(original, probe, verdict):
    attacks = 'relearning/k16/step20', 'new_head/k16/step20'
    values = dict(zip(('probe/last', *attacks), (*original, original[1])))
    rows = [dict(measure=m, model='original', seed=None, value=v) for m, v in values.items() if v]
    unlearned = {'probe/last': probe, **dict.fromkeys(attacks, 20)}
    for measure, other in zip(unlearned, (80, 20, 20)):
        for model, value in (('unlearned', unlearned[measure]), ('unseen', other)):
            rows.append(dict(measure=measure, model=model, seed=None, value=value))
    audit = AuditRows(dict(task=1, rows=rows))
    record = record_of(0.0)
    found = judge_request(record, record['tasks'][0], limits_of(None), audit)
    assert found.verdict == verdict
    assert ('the original itself would pass' in found.reason) == (verdict == OUTPUT_ONLY)


@pytest.mark.parametrize(
    ('first', 'new_head', 'verdict'),
    [
        (90, 60, FORGOTTEN),
        (70, 60, FORGOTTEN),  # a first layer knows little; the last one tells
        (90, 20, OUTPUT_ONLY),  # what is furthest above tells nothing, whatever the others do
    ],
)
def test_what_the_original_has_where_the_model_is_furthest(first, new_head, verdict):
    values = {  # original, the model, classes never seen
        'probe/first': (first, 70, 70),
        'probe/last': (95, 40, 80),
        'relearning/k16/step20': (60, 10, 20),
        'new_head/k16/step20': (new_head, 20, 20),
    }
    models = 'original', 'unlearned', 'unseen'
    rows = [
        dict(measure=measure, model=model, seed=None, value=value)
        for measure, of_models in values.items()
        for model, value in zip(models, of_models)
    ]
    record, audit = record_of(0.0), AuditRows(dict(task=1, rows=rows))
    found = judge_request(record, record['tasks'][0], limits_of(None), audit)
    assert found.verdict == verdict


def verdict_on(record):
    return judge_request(record, record['tasks'][0], limits_of(None)).verdict


def test_a_class_that_nothing_shows_is_not_forgotten():
    """What is measured of the other class of the request says nothing of it."""
    record = record_of(0.0)
    assert verdict_on(record) == OUTPUT_ONLY
    record['tasks'][0]['forget'].append('d')
    assert verdict_on(record) == NOT_SHOWN


@pytest.mark.parametrize(('found', 'verdict'), [(6.0, OUTPUT_ONLY), (6.1, NOT_FORGOTTEN)])
def test_of_several_oracles_one_must_have_as_much(found, verdict):
    """Ten on either class by another oracle are not ten on both."""
    record = record_of(found)
    record['tasks'][0].update(forget=['a', 'c'], retain=['d'])
    for values in (record['pretrained']['per_class'], record['tasks'][0]['per_class']):
        values.update(c=found, d=60.0)
    values = dict(oracle=(10, 2), **{'oracle 2': (0, 10)})
    rows = [
        dict(measure=f'output/per_class/{name}', model=model, value=value)
        for model, pair in values.items()
        for name, value in zip('ac', pair)
    ]
    audit = AuditRows(dict(task=1, rows=rows))
    assert judge_request(record, record['tasks'][0], limits_of(None), audit).verdict == verdict


def test_the_class_that_counts_is_the_furthest_above_its_own_limit():
    """The oracle has all 18 of a, and c may have 5: it has 6, fewer than a, and is there."""
    record = record_of(12.0)
    task = record['tasks'][0]
    task.update(forget=['a', 'c'], retain=['d'])
    task['per_class'].update(a=18.0, c=6.0, d=60.0)
    record['pretrained']['per_class']['d'] = 60.0
    measured = {'a': 18, 'c': 0}
    rows = [
        dict(measure=f'output/per_class/{name}', model='oracle', value=value)
        for name, value in measured.items()
    ]
    # A mean of 12 is above the oracle's 9 as well; the limit of the mean is the user's.
    limits = limits_of(dict(forgotten_max=12.0))
    found = judge_request(record, task, limits, AuditRows(dict(task=1, rows=rows)))
    assert found.verdict == NOT_FORGOTTEN
    assert found.reason == 'AP of c after task 1: 6 (allowed: 5).'


def test_an_oracle_that_was_measured_on_one_class_raises_no_limit():
    """Where the other has no image to measure on, nothing is known of both together."""
    record = record_of(6.0)
    task = record['tasks'][0]
    task.update(forget=['a', 'c'], retain=['d'])
    for values in (record['pretrained']['per_class'], task['per_class']):
        values.update(c=6.0, d=60.0)
    rows = [dict(measure='output/per_class/a', model='oracle', value=50)]
    found = judge_request(record, task, limits_of(None), AuditRows(dict(task=1, rows=rows)))
    assert found.verdict == NOT_FORGOTTEN
    assert found.reason.startswith('AP_f after task 1: 6 (allowed: 2);')


def test_what_was_never_seen_gone_did_not_come_back():
    """Where the first model of a request is missing, the last one alone speaks."""
    record = record_of(0.0, latest=9.0)
    unfit = {1: 'merged/task_01.pth is missing'}
    verdict = judge_request(record, record['tasks'][0], limits_of(None), unfit=unfit)
    assert verdict.verdict == NOT_FORGOTTEN
    assert verdict.reason == 'AP_o of these classes after task 2: 9 (allowed: 2).'


@pytest.mark.parametrize(('kept', 'verdict'), [(76.0, OUTPUT_ONLY), (75.9, TOO_COSTLY)])
def test_classes_without_training_data_must_stay_too(kept, verdict):
    record = record_of(0.0)
    record['tasks'][0].update(missing=['d'])
    record['pretrained']['per_class']['d'] = 80.0
    record['tasks'][0]['per_class']['d'] = kept
    assert verdict_on(record) == verdict


def test_what_missing_classes_kept_and_nobody_measured_is_not_shown():
    record = record_of(forgotten=0)
    record['tasks'][0].update(missing=['d'])
    record['pretrained']['per_class']['d'] = 50.0
    audit = AuditRows(dict(task=1, rows=rows_of(oracle=0, **NEAR)))
    verdict = judge_request(record, record['tasks'][0], limits_of(None), audit)
    assert verdict.verdict == NOT_SHOWN
    assert 'kept by 1 missing class: the run did not record it' in verdict.reason


@pytest.mark.parametrize(('kept', 'verdict'), [(60.0, NOT_SHOWN), (40.0, TOO_COSTLY)])
def test_missing_classes_that_the_original_never_knew_hide_no_failure(kept, verdict):
    """Of an AP of 0 nothing can be kept; what the others lost is known all the same."""
    record = record_of(0.0, kept)
    record['tasks'][0].update(missing=['d'])
    record['pretrained']['per_class']['d'] = record['tasks'][0]['per_class']['d'] = 0.0
    found = judge_request(record, record['tasks'][0], limits_of(None), AuditRows({}))
    assert found.verdict == verdict
    if verdict == NOT_SHOWN:
        assert 'by 1 missing class: the original has 0 there, of which nothing' in found.reason
