import json
from dataclasses import replace

import pytest

from mmgslora.audit.measures import MORE, Settings
from mmgslora.audit.record import AuditRecord
from mmgslora.audit.rows import AuditRows
from mmgslora.audit.verdict import limits_of
from mmgslora.records.ledger import Ledger

FILES = {
    role: dict(path=f'{role}.pth', sha256=role) for role in ('unlearned', 'original', 'oracle')
}

SETTINGS = Settings()


def row(model, measure, value, seed=None):
    return dict(model=model, seed=seed, measure=measure, value=value)


def mean(record, measure, model):
    value = record.rows.value(measure, model)
    return value and value.mean


@pytest.fixture
def record_at(tmp_path):
    def make(
        files=FILES, settings=SETTINGS, task=1, forgotten=('a',), limits=None, about=(), **run
    ):
        entry = dict(task=task, forget=list(forgotten), old=[], retain=['z'], missing=[])
        entry.update(metrics=dict(AP_f=2.5, AP_r=60.0), per_class=dict(a=2.5, z=60.0))
        record = dict(pretrained=dict(per_class=dict(a=80.0, z=60.0)), tasks=[entry], **run)
        path = tmp_path / 'audit.json'
        limits = limits and limits_of(limits)
        return AuditRecord(path, record, entry, files, settings, limits, **dict(about))

    return make


def test_measured_units_are_found_again(record_at, tmp_path):
    first = record_at()
    first.add('output', 'unlearned', [row('unlearned', 'output/AP_gone', 1.5)], 2.0)
    again = record_at()
    assert again.has('output', 'unlearned')
    assert not again.has('output', 'original')
    assert mean(again, 'output/AP_gone', 'unlearned') == 1.5
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != '.lock') == ['audit.json']


def test_two_that_measure_at_once(record_at):
    """Each adds what it has measured, and neither undoes what the other was told to drop."""
    one, other = record_at(), record_at()
    one.add('output', 'unlearned', [row('unlearned', 'output/AP_gone', 1.5)], 2.0)
    other.add('output', 'oracle', [row('oracle', 'output/AP_gone', 2.5)], 2.0)
    one.write()
    for record in (one, other, record_at()):
        assert mean(record, 'output/AP_gone', 'oracle') == 2.5
        assert mean(record, 'output/AP_gone', 'unlearned') == 1.5
    assert len(record_at().rows.content['rows']) == 2
    new = record_at(files=changed('unlearned'))
    new.add('output', 'original', [row('original', 'output/AP_gone', 80.0)], 2.0)
    assert not new.has('output', 'unlearned') and new.has('output', 'oracle')


def test_what_a_killed_audit_left_half_written_goes(record_at, tmp_path):
    """Of the file and of the one that is put beside it; what others are writing stays."""
    record_at().write()
    left = [f'.audit.{"a" * 32}.json', f'.audit_task_01.{"b" * 32}.json']
    kept = [f'.forgetting.{"a" * 32}.json', f'.audit.{"a" * 31}.json', '.audit.json', 'audit.lock']
    for name in left + kept:
        (tmp_path / name).write_text('{')
    record_at(task=2, forgotten=('a', 'b')).write()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *kept,
        'audit.json',
        'audit_task_01.json',
        *names.intersection(['.audit.lock']),
    }


def test_what_was_measured_of_another_task_is_put_beside(record_at, tmp_path):
    after = changed('unlearned')
    record_at().add('probe', 'unlearned', [row('unlearned', 'probe/x', 1.0, seed=0)], 0.0)
    other = record_at(task=2, forgotten=('a', 'b'), files=after)
    other.add('probe', 'unlearned', [row('unlearned', 'probe/x', 2.0, seed=0)], 0.0)
    for name, task, value in (('audit_task_01.json', 1, 1.0), ('audit.json', 2, 2.0)):
        held = json.loads((tmp_path / name).read_text())
        assert held['task'] == task and [one['value'] for one in held['rows']] == [value]
    assert mean(record_at(), 'probe/x', 'unlearned') == 1.0
    record_at().write()
    assert json.loads((tmp_path / 'audit.json').read_text())['rows'][0]['value'] == 1.0
    again = record_at(task=2, forgotten=('a', 'b'), files=after)
    assert mean(again, 'probe/x', 'unlearned') == 2.0


def changed(role):
    return {**FILES, role: dict(path=f'{role}.pth', sha256='changed')}


@pytest.mark.parametrize(
    ('unit', 'change', 'kept'),
    [
        ('probe', dict(files=changed('unlearned')), False),
        ('probe', dict(files=changed('oracle')), True),
        ('probe', dict(files={k: v for k, v in FILES.items() if k != 'oracle'}), True),
        ('divergence', dict(files=changed('oracle')), False),
        ('probe', dict(files={**FILES, 'config': dict(path='c.py', sha256='other')}), True),
        ('probe', dict(about=dict(data='other')), False),
        ('probe', dict(settings=replace(SETTINGS, seeds=(0,))), False),
        ('relearning/k4', dict(settings=replace(SETTINGS, relearning_images=(4,))), True),
        ('relearning/k4', dict(settings=replace(SETTINGS, relearning_lr=1.0)), False),
        ('probe', dict(task=2), True),
        ('probe', dict(forgotten=('a', 'b')), False),
        ('probe', dict(split='test'), False),
        ('probe', dict(limits=dict(forgotten_max=9.0)), True),
    ],
)
def test_what_was_measured_on_something_else_is_dropped(record_at, unit, change, kept):
    measure = f'{unit}/step5' if unit.startswith('relearning') else f'{unit}/x'
    record_at().add(unit, 'unlearned', [row('unlearned', measure, 1.0, seed=0)], 0.0)
    again = record_at(**change)
    assert again.has(unit, 'unlearned') == kept
    assert (mean(again, measure, 'unlearned') == 1.0) == kept


def test_what_another_run_measured_of_the_same_models(record_at, tmp_path):
    first = record_at()
    for model in ('unlearned', 'original'):
        first.add('probe', model, [row(model, 'probe/x', len(model), seed=0)], 0.0)
    first.nearest = dict(z='a')
    first.add('outcomes', 'original', [row('original', 'outcomes/found', 90.0)], 0.0)
    known = tmp_path / 'other.json'
    (tmp_path / 'audit.json').rename(known)
    again = record_at(files=changed('unlearned'), about=dict(known=[known]))
    assert again.has('probe', 'original') and not again.has('probe', 'unlearned')
    assert mean(again, 'probe/x', 'original') == 8 and again.nearest == dict(z='a')
    again.add('probe', 'unlearned', [row('unlearned', 'probe/x', 5.0, seed=0)], 0.0)
    assert record_at(files=changed('unlearned')).has('probe', 'original')  # in its own file now
    assert again.rows.foreign(None) == ''
    known.write_text(known.read_text().replace(' 8', ' 7'))  # rows that were changed since
    (tmp_path / 'audit.json').unlink()
    assert not record_at(about=dict(known=[known])).has('probe', 'original')


def test_a_broken_file_is_measured_anew(record_at, tmp_path):
    (tmp_path / 'audit.json').write_text('{"rows": [')
    assert record_at().rows.measures == []


def test_comparisons_follow_from_the_rows(record_at):
    record = record_at()
    for model, aps in (('original', (80.0, 70.0)), ('unlearned', (0.0, 64.0))):
        rows = [row(model, f'output/per_class/{n}', v) for n, v in zip('ab', aps)]
        record.add('output', model, rows, 0.0)
    for model, values in (('unlearned', (0, 30, 50)), ('oracle', (0, 20, 30))):
        rows = [
            row(model, f'relearning/k16/step{step}', float(value), seed=0)
            for step, value in zip((0, 10, 20), values)
        ]
        record.add('relearning/k16', model, rows, 0.0)
    assert mean(record, 'damage/b', 'unlearned') == 6
    assert mean(record, 'damage/a', 'unlearned') is None
    assert mean(record, 'damage/b', 'original') is None
    assert mean(record, 'relearning/k16/lead', 'unlearned') == 15
    assert mean(record, 'relearning/k16/steps_to_oracle', 'unlearned') == 10


def test_relearning_is_ahead_of_the_oracle_that_ends_highest(record_at):
    """By the mean over the seeds: of the second oracle, though the first ends higher in seed 1."""
    record = record_at(files={**FILES, 'oracle 2': dict(path='2.pth', sha256='2')})
    ends = {'unlearned': (50.0, 50.0), 'oracle': (10.0, 45.0), 'oracle 2': (40.0, 30.0)}
    for model, values in ends.items():
        rows = [
            row(model, f'relearning/k16/step{step}', share * value, seed)
            for seed, value in enumerate(values)
            for step, share in ((0, 0.0), (10, 0.7), (20, 1.0))
        ]
        record.add('relearning/k16', model, rows, 0.0)
    derived = [r for r in record.rows.content['rows'] if 'unit' not in r]
    assert [(r['model'], r['seed'], r['measure'][15:], r['value']) for r in derived] == [
        ('unlearned', 0, 'lead', pytest.approx(8.5)),  # (7 + 10) / 2
        ('unlearned', 0, 'steps_to_oracle', 20),  # 35 at step 10, 40 needed
        ('unlearned', 1, 'lead', pytest.approx(17.0)),
        ('unlearned', 1, 'steps_to_oracle', 10),
    ]


def test_steps_that_were_not_reached_are_null(record_at, tmp_path):
    record = record_at()
    for model, value in (('unlearned', 5.0), ('oracle', 9.0)):
        rows = [row(model, f'relearning/k1/step{s}', v, seed=0) for s, v in ((0, 0.0), (5, value))]
        record.add('relearning/k1', model, rows, 0.0)
    content = json.loads((tmp_path / 'audit.json').read_text())
    found = {r['measure']: r['value'] for r in content['rows'] if r['model'] == 'unlearned'}
    assert found['relearning/k1/steps_to_oracle'] is None
    assert found['relearning/k1/lead'] == -4


def test_the_verdict_counts_no_model_that_is_not_there_any_more(record_at):
    """As in the certificate: of an earlier task, whose merged file somebody deleted."""
    measured = [row('unlearned', 'output/AP_gone', 2.5)]
    for about, verdict in (
        ({}, 'not forgotten'),
        (dict(unfit={1: 'merged/task_01.pth is missing'}), 'not shown'),
    ):
        record = record_at(about=about)
        record.add('output', 'unlearned', measured, 0.0)
        assert record.verdict().verdict == verdict


def test_verdict_rests_on_the_furthest_layer_and_attack(record_at):
    record = record_at(limits=dict(forgotten_max=3.0))
    assert record.verdict() is None
    record.add('output', 'unlearned', [row('unlearned', 'output/AP_gone', 2.5)], 0.0)
    for model, probe, point in (('unlearned', 71.0, 40.0), ('oracle', 70.0, 44.0)):
        layers = [
            row(model, 'probe/encoder', 9 * probe, 0),
            row(model, 'probe/decoder.0', probe, 0),
            row(model, 'probe/decoder.1', 70.0, 0),
        ]
        record.add('probe', model, layers, 0.0)
        rows = [row(model, f'relearning/k16/step{s}', v, 0) for s, v in ((0, 0.0), (20, point))]
        record.add('relearning/k16', model, rows, 0.0)
        record.add('new_head', model, [row(model, 'new_head/k16/step20', point / 4, 0)], 0.0)
    verdict = record.verdict()
    assert {check['measure']: check['value'] for check in verdict.checks} == {
        'AP_f after task 1': 2.5,
        'share of their pre-trained mean kept by 1 retained class': 1.0,
        'probe/decoder.0, above the oracle': 1.0,
        'new_head/k16/step20, above the oracle': -1.0,
    }
    assert verdict.verdict == 'forgotten'


def test_the_report_reads_the_file(record_at, tmp_path):
    record = record_at()
    for seed, value in enumerate((10.0, 20.0)):
        record.add(
            f'relearning/k{16 + seed}',
            'unlearned',
            [
                row('unlearned', f'relearning/k16/step{s}', v, seed)
                for s, v in ((0, 0.0), (20, value))
            ],
            0.0,
        )
    rows = AuditRows(json.loads((tmp_path / 'audit.json').read_text()))
    assert rows.task == 1
    assert rows.forgotten == ['a']
    found = rows.value('relearning/k16/step20', 'unlearned')
    assert (found.mean, found.low, found.high, found.seeds) == (15, 10, 20, 2)
    assert list(rows.curves()) == [16]


@pytest.mark.parametrize(('new_head', 'gap'), [((9.0, 4.0), 5.0), ((2.0, 4.0), 3.0)])
def test_the_larger_lead_of_both_attacks_counts(record_at, new_head, gap):
    record = record_at()
    for model, relearned, anew in (('unlearned', 8.0, new_head[0]), ('oracle', 5.0, new_head[1])):
        record.add('output', model, [row(model, 'output/AP_gone', 0.0)], 0.0)
        point = row(model, 'relearning/k16/step20', relearned, seed=0)
        record.add('relearning/k16', model, [point], 0.0)
        record.add('new_head', model, [row(model, 'new_head/k16/step20', anew, seed=0)], 0.0)
    assert record.verdict().checks[-1]['value'] == gap


def test_a_lead_on_more_images_counts_too(record_at):
    record = record_at()
    for model, few, many in (('unlearned', 8.0, 30.0), ('oracle', 5.0, 20.0)):
        record.add('output', model, [row(model, 'output/AP_gone', 0.0)], 0.0)
        for k, value in ((16, few), (64, many)):
            point = row(model, f'relearning/k{k}/step20', value, seed=0)
            record.add(f'relearning/k{k}', model, [point], 0.0)
    check = record.verdict().checks[-1]
    assert (check['measure'], check['value']) == ('relearning/k64/step20, above the oracle', 10.0)


def test_an_audit_of_an_unfinished_run_says_so(record_at):
    assert 'unfinished' not in record_at().cannot_conclude()[0]
    record = record_at(protocol=dict(tasks=[['a'], ['z']]))
    assert record.cannot_conclude()[0].startswith('The run is unfinished: 1 of its 2 requests')


def test_a_request_that_was_taken_back_is_said_to_be(record_at, tmp_path):
    for number in (2, 1):
        file = dict(path=f'merged/without_{number:02d}.pth', sha256='7' * 64)
        line = Ledger(tmp_path).append(
            'taken back', task=number, classes=['a', 'b'], files=dict(merged=file)
        )
    assert record_at().cannot_conclude()[0] == (
        f'Request 1 (a, b) was taken back on {line["time"][:10]}: this audit is of the model '
        'before, and nothing is known of merged/without_01.pth.'
    )
    assert 'taken back' not in record_at().cannot_conclude()[1]  # the other came after this task


def test_an_oracle_that_was_not_measured_stands_for_nothing(record_at):
    record = record_at()  # whose files have one
    record.add('output', 'unlearned', [row('unlearned', 'output/AP_gone', 0.0)], 0.0)
    assert record.cannot_conclude()[0].startswith('Without an oracle')
    record.add('output', 'oracle', [row('oracle', 'output/AP_gone', 0.0)], 0.0)
    assert record.cannot_conclude()[0].startswith('One oracle stands for all')


def test_further_draws_are_completed(record_at):
    """One process made them for the oracle alone; with them the two are no longer close."""
    record = record_at()
    attack, measure = 'relearning/k16', 'relearning/k16/step20'
    for model, values in (('unlearned', (14.0, 14.0, 14.0)), ('oracle', (0.0, 9.0, 9.0))):
        draws = [dict(row(model, measure, v, seed), lr=0.5) for seed, v in enumerate(values)]
        record.add(attack, model, draws, 0.0)
    assert record.close_calls() == [attack]  # 9 apart, 8 the gap
    assert record.rate(attack + MORE, 'oracle') == 0.5 and record.rate('probe', 'oracle') is None
    further = [row('oracle', measure, 0.0, seed) for seed in (3, 4)]
    record.add(attack + MORE, 'oracle', further, 0.0)
    assert not record.rows.is_close(measure)  # 10.4 by now
    assert record_at().close_calls() == [attack]
    # Nor are they made for a second oracle that nobody has attacked yet, or the original.
    models = 'unlearned', 'oracle', 'oracle 2', 'original'
    assert record_at().further_draws(models) == [(attack + MORE, m) for m in models[:2]]
