import importlib.util
import json
import sys

import pytest


@pytest.fixture(scope='module')
def audit(repo_root):
    folder = str(repo_root / 'benchmarks')
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location('audit_bench', f'{folder}/audit.py')
        module = importlib.util.module_from_spec(spec)
        sys.modules['audit_bench'] = module  # a dataclass asks for its module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


@pytest.fixture
def finished(tmp_path, audit, monkeypatch):
    """A run whose audit is there, in a folder of its own."""
    rows = [
        dict(model='unlearned', seed=None, measure='output/AP_gone', value=0.7),
        dict(model='unlearned', seed=None, measure='output/per_class/circle', value=0.7),
        dict(model='unlearned', seed=0, measure='probe/decoder.1', value=60.0),
        dict(model='unlearned', seed=1, measure='probe/decoder.1', value=64.0),
        dict(model='original', seed=0, measure='probe/decoder.1', value=90.0),
        dict(model='oracle', seed=0, measure='probe/decoder.1', value=80.0),
        dict(model='unlearned', seed=0, measure='relearning/k16/steps_to_oracle', value=None),
    ]
    verdict = dict(verdict='forgotten')
    (tmp_path / 'audit.json').write_text(json.dumps(dict(rows=rows, verdict=verdict)))
    task = dict(task=1, forget=['circle'], retain=['heart'], old=[], missing=[], train_seconds=9.0)
    task['prepare_seconds'] = 1.5  # of what a method does before it trains
    task.update(metrics=dict(AP_f=0.7, AP_r=40.0), per_class=dict(circle=0.7, heart=40.0))
    before = dict(per_class=dict(circle=80.0, heart=50.0))
    (tmp_path / 'forgetting.json').write_text(json.dumps(dict(pretrained=before, tasks=[task])))
    commands = []
    monkeypatch.setattr(audit.subprocess, 'run', lambda command, **_: commands.append(command))
    return tmp_path, commands


def test_rows_and_table(audit, finished):
    folder, commands = finished
    rows = audit.rows_of(folder, 'deepened', 4, ['--oracle', 'o.pth'])
    assert commands[0][2:4] == [str(folder), '--measures'] and commands[0][-1] == 'o.pth'
    found = audit.values_of(rows)
    assert found['probe/decoder.1'] == dict(
        deepened={4: [60.0, 64.0]}, original={None: [90.0]}, oracle={None: [80.0]}
    )
    assert found['AP_r kept'] == dict(deepened={4: [80.0]})
    assert {row['run'] for row in rows if row['model'] == 'deepened'} == {4}
    assert all(row['run'] is None for row in rows if row['model'] != 'deepened')
    lines = audit.table(rows).splitlines()
    head, original, deepened, oracle = lines[0], *lines[2:]
    assert head.startswith('| model | AP_gone | AP_r kept | probe decoder.1 | new head |')
    assert original.startswith('| original |  |  | 90.0 |')
    assert deepened.startswith('| deepened | 0.7 | 80.0 | 62.0 (60.0 to 64.0) |')
    assert deepened.endswith('| 10.5 | forgotten |') and oracle.startswith('| oracle |')


def test_a_run_with_more_draws_counts_no_more(audit, finished, tmp_path, monkeypatch):
    """Means of 62 and 70 are 66 together; of the three draws alone it would be 64.7."""
    folder, _ = finished
    rows = [row for seed in (0, 1) for row in audit.rows_of(folder, 'ours', seed, [])]
    own = [
        x for x in rows if (x['model'], x['run'], x['measure']) == ('ours', 1, 'probe/decoder.1')
    ]
    rows.remove(own[1])
    own[0]['value'] = 70.0
    assert '| 66.0 (60.0 to 70.0) |' in audit.table(rows)
    (tmp_path / 'docs/images').mkdir(parents=True)
    monkeypatch.setattr(audit, 'ROOT', tmp_path)
    drawn = []
    monkeypatch.setattr(audit.plt, 'close', drawn.append)
    measures = [*list(audit.ATTACKS.values())[1:]]
    rows += [dict(x, measure=m) for x in rows if x['measure'].startswith('probe') for m in measures]
    audit.plot('shapes', rows)
    (figure,) = drawn
    assert [x.get_text() for x in figure.legends[0].get_texts()] == ['ours', '97 % kept']
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[80.0, -14.0]]


def test_every_config_is_there(audit, repo_root):
    for subject in audit.SUBJECTS.values():
        others = [config for _, *more in subject.others.values() for config in more]
        for config in (subject.forget, subject.deepen, subject.oracle, *others):
            assert (repo_root / config).is_file(), config
