"""Whole audits of models whose answers are known."""

import numpy as np
import pytest

from mmgslora.audit.measures import Audit, Settings
from mmgslora.audit.record import AuditRecord
from mmgslora.audit.rows import KINDS
from mmgslora.audit.sentences import sentence
from mmgslora.audit.verdict import FORGOTTEN, HIDDEN, NOT_FORGOTTEN, OUTPUT_ONLY
from mmgslora.errors import ForgettingError

from .flat import FORGOTTEN as GONE
from .flat import FlatImages, head_cut, oracle, original

TRAIN, HELD_OUT = FlatImages(50, seed=0), FlatImages(50, seed=1)
SETTINGS = Settings(relearning_images=(16,), relearning_steps=(0, 5, 20), relearning_lr=0.05)


def run_of(model):
    """What a run that made this model would have recorded."""
    task = dict(task=1, forget=['a', 'c'], old=[], retain=['b', 'd'], missing=[])
    task['per_class'] = now = model.evaluate(HELD_OUT)
    task['metrics'] = dict(Acc_f=(now['a'] + now['c']) / 2, Acc_r=(now['b'] + now['d']) / 2)
    return dict(pretrained=dict(per_class=original().evaluate(HELD_OUT)), tasks=[task])


def run(tmp_path, ours, with_oracle=True, measures=None, settings=SETTINGS, unseen=None):
    models = dict(original=original(), unlearned=ours)
    if with_oracle:
        models['oracle'] = oracle()
    audit = Audit(models, TRAIN, HELD_OUT, GONE, settings, unseen=unseen)
    files = {role: dict(path=role, sha256=role) for role in audit.models}
    record = AuditRecord(
        tmp_path / 'audit.json', run_of(ours), run_of(ours)['tasks'][0], files, settings
    )
    for unit, model in audit.units(*([measures] if measures else [])):
        rows = audit.measure(unit, model)
        record.nearest = audit.nearest or record.nearest
        record.add(unit, model, rows, 0.0)
    return record


@pytest.mark.parametrize(
    ('model', 'expected'), [(original, NOT_FORGOTTEN), (oracle, FORGOTTEN), (head_cut, HIDDEN)]
)
def test_the_audit_tells_models_apart(tmp_path, model, expected):
    record = run(tmp_path, model(), measures=('output', 'probe', 'relearning', 'new_head'))
    assert record.verdict().verdict == expected


def test_without_an_oracle_only_the_output_is_judged(tmp_path):
    record = run(tmp_path, head_cut(), with_oracle=False)
    assert record.verdict().verdict == OUTPUT_ONLY
    assert 'Without an oracle' in record.cannot_conclude()[0]
    assert not any('oracle' in row['measure'] for row in record.rows.content['rows'])
    hidden = run(tmp_path, original(), with_oracle=False, measures=('output',))
    assert hidden.verdict().verdict == NOT_FORGOTTEN


def test_every_measure_of_a_cut_head(tmp_path):
    record = run(tmp_path, head_cut())

    def value(measure, model):
        found = record.rows.value(measure, model)
        return found and found.mean

    assert value('output/Acc_gone', 'unlearned') == 0
    assert value('output/Acc_gone', 'original') == 100
    assert value('output/Acc_r', 'unlearned') == 100
    assert value('damage/b', 'unlearned') == 0
    # What a and c are called when they are cut off: b or d.
    called = value('outcomes/called b', 'unlearned') + value('outcomes/called d', 'unlearned')
    assert called == pytest.approx(100, abs=10)
    assert value('outcomes/found', 'original') == 100
    # The inside is that of the original, to the last digit.
    assert value('probe/inside', 'unlearned') == value('probe/inside', 'original') == 100
    assert value('probe/inside', 'oracle') < 80
    assert value('prototype/inside', 'unlearned') == 100
    assert value('membership/loss', 'unlearned') == pytest.approx(0.5, abs=0.1)
    # Unlearned and oracle differ on neither side by much; the original does on the forgotten.
    near, far = (value('divergence/oracle_forget', model) for model in ('unlearned', 'original'))
    assert near < far / 2
    assert 0 <= value('divergence/ZRF', 'original') <= 1
    assert value('relearning/k16/lead', 'unlearned') > 0
    assert value('relearning/k16/lead', 'oracle') is None


def test_rows_are_complete(tmp_path):
    record = run(tmp_path, head_cut())
    content = record.rows.content
    for row in content['rows']:
        assert {'model', 'seed', 'measure', 'value'} <= row.keys()
    for measure in ('probe/inside', 'membership/loss', 'relearning/k16/step5', 'divergence/ZRF'):
        for model in ('unlearned', 'oracle', 'original'):
            rows = [r for r in content['rows'] if (r['measure'], r['model']) == (measure, model)]
            assert [r['seed'] for r in rows] == [0, 1, 2]
    assert record.nearest.keys() == {'a', 'b', 'c', 'd'}
    assert record.nearest['a'] in ('b', 'd')


def test_every_measure_has_its_sentence(tmp_path):
    record = run(tmp_path, head_cut())
    said = {kind: sentence(record.rows, kind) for kind in record.rows.kinds()}
    assert said.keys() == {*KINDS} - {'localisation'}
    assert said['output'].startswith('After forgetting: Acc_gone 0.0 (before 100.0, oracle ')
    assert said['damage'].startswith('b has lost most: 0.0 points. The class it is taken for most')
    assert 'After forgetting: 0.0 % found' in said['outcomes']
    assert said['probe'].startswith(
        'From inside, the probe names 100.0 % of the forgotten objects (before forgetting 100.0 %)'
    )
    assert record.verdict().verdict == 'hidden, not forgotten'


def test_units_come_in_order_and_only_those_asked_for():
    audit = Audit(dict(original=original(), unlearned=oracle()), TRAIN, HELD_OUT, GONE)
    assert list(audit.units(['relearning', 'output'])) == [
        ('output', 'unlearned'),
        ('output', 'original'),
        *((f'relearning/k{k}', model) for k in (16, 64) for model in ('unlearned', 'original')),
    ]
    assert list(audit.units(['relearning/k64'])) == [
        ('relearning/k64', 'unlearned'),
        ('relearning/k64', 'original'),
    ]
    with pytest.raises(ForgettingError, match="no measure 'relearning/k8'; allowed are .*/k16, "):
        list(audit.units(['relearning/k8']))


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('relearning_lr', 'abc', "relearning_lr is 'abc'; it can be a number above 0 or a list"),
        ('relearning_lr', float('nan'), 'relearning_lr is nan'),
        ('relearning_lr', [1e-3, 0], 'relearning_lr is .*each a number above 0'),
        ('relearning_batch', 0, 'relearning_batch is 0; it can be a whole number from 1 up'),
        ('relearning_batch', 1.5, 'relearning_batch is 1.5'),
        ('probe_share', 0, 'probe_share is 0; it can be a number above 0, at most 1'),
        ('seeds', -1, r'seeds is \(-1,\); it can be a list, each a whole number from 0 up'),
        ('seeds', [0, 0], r'seeds is \(0, 0\); each can be there once'),
        ('relearning_steps', [], r'relearning_steps is \(\)'),
        ('relearning_steps', 0, r'relearning_steps is \(0,\), .* its last must be at least 1'),
        ('relearning_steps', [0, 20, 5], 'each must be above the one before'),
    ],
)
def test_settings_that_mean_nothing(name, value, words):
    """Before hours of measuring; what is there twice would count as a draw of its own."""
    with pytest.raises(ForgettingError, match=words):
        Settings(**{name: value})


def test_one_number_where_several_may_stand():
    """As --cfg-options relearning_images=32 gives it, or a config."""
    one = Settings(seeds=3, relearning_images=32, relearning_steps=[0, 5], relearning_lr=1e-3)
    assert (one.seeds, one.relearning_images, one.relearning_steps) == ((3,), (32,), (0, 5))
    assert one.relearning_lr == 1e-3 and Settings(relearning_lr=[1, 2]).relearning_lr == (1, 2)
    audit = Audit(dict(original=original(), unlearned=oracle()), TRAIN, HELD_OUT, GONE, one)
    assert ('relearning/k32', 'unlearned') in audit.units()


def test_images_of_the_forgotten_classes_are_needed():
    bare = FlatImages(0, seed=0)
    with pytest.raises(ForgettingError, match='No held-out image shows a, c;'):
        Audit(dict(original=original(), unlearned=oracle()), TRAIN, bare, GONE)
    with pytest.raises(ForgettingError, match='No training image shows'):
        Audit(dict(original=original(), unlearned=oracle()), bare, HELD_OUT, GONE)


def test_every_model_is_attacked_at_the_rate_that_is_best_there():
    rates = (1e-4, 0.05)
    several = Settings(relearning_images=(16,), relearning_steps=(0, 20), relearning_lr=rates)
    one = Settings(relearning_images=(16,), relearning_steps=(0, 20), relearning_lr=0.05)
    found = [
        Audit(dict(original=original(), unlearned=head_cut()), TRAIN, HELD_OUT, GONE, settings)
        for settings in (several, one)
    ]
    for unit in ('relearning/k16', 'new_head'):
        rows, wanted = (audit.measure(unit, 'unlearned') for audit in found)
        assert rows == wanted  # next to nothing is learned at the other rate
        assert {row['lr'] for row in rows} == {0.05}


def test_further_draws_where_the_spread_is_wider_than_the_gap(tmp_path):
    record = run(tmp_path, head_cut(), measures=('relearning', 'new_head'))
    audit = Audit(dict(original=original(), unlearned=head_cut()), TRAIN, HELD_OUT, GONE, SETTINGS)
    more = audit.measure('new_head/more', 'unlearned')
    assert [row['seed'] for row in more] == [3, 4]
    assert {row['measure'] for row in more} == {'new_head/k16/step20'}
    slow = audit.measure('relearning/k16/more', 'unlearned', 1e-4)
    assert {(row['seed'], row['lr']) for row in slow} == {(3, 1e-4), (4, 1e-4)}
    assert 'relearning/k16' not in record.close_calls()  # 0 to 3 points against some ten
    for seed, value in enumerate((0.0, 100.0)):
        row = dict(model='oracle', seed=seed, measure='relearning/k16/step20', value=value)
        record.add('relearning/k16', 'oracle', [row], 0.0)
    assert 'relearning/k16' in record.close_calls()


class NewImages(FlatImages):
    """Two classes that no model has seen lie where a and c do not, and upon each other."""

    classes = ('x', 'b', 'y', 'd')

    def __init__(self, per_class, seed):
        super().__init__(per_class, seed)
        gone = np.isin(self.truth, GONE)
        self.points[gone] = np.random.default_rng(seed).normal(size=(gone.sum(), 2))


def test_without_an_oracle_classes_never_seen_are_compared_with(tmp_path):
    new = NewImages(50, seed=0), NewImages(50, seed=1)
    record = run(tmp_path, head_cut(), with_oracle=False, unseen=new)
    rows = record.rows
    assert rows.reference_name == 'classes never seen' and not rows.has_oracle
    assert {m.split('/')[0] for m in rows.measures if rows.value(m, 'unseen')} == {
        *('probe', 'prototype', 'relearning', 'new_head')
    }
    assert rows.value('probe/inside', 'unseen').mean == pytest.approx(50, abs=15)
    verdict = record.verdict()
    assert verdict.verdict == HIDDEN and 'above classes never seen' in verdict.reason
    assert 'compares with other classes' in record.cannot_conclude()[0]
    assert 'from classes never seen' in sentence(rows, 'probe')
    # Where an oracle is there, too, it is what counts.
    both = run(tmp_path / 'both', head_cut(), unseen=new, measures=('output', 'probe'))
    assert both.rows.reference_name == 'the oracle' and both.rows.value('probe/inside', 'unseen')
