"""tools/audit.py on a run that looks finished: its model is the original with a spoilt head."""

import copy
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmgslora.datasets.shapes import SHAPES
from mmgslora.errors import ForgettingError
from mmgslora.records.finished_run import sha256

GONE = ['circle', 'square']
QUICK = dict(
    train_images=20,
    relearning_images=[2],
    relearning_steps=[0, 1],
    relearning_batch=2,
    relearning_measured_on=4,
)


@pytest.fixture(scope='module')
def tool(repo_root):
    sys.path.insert(0, str(repo_root / 'tools'))
    try:
        import audit
    finally:
        sys.path.remove(str(repo_root / 'tools'))
    return audit


def changed(checkpoint, rows=1e-3, noise=0.0):
    """The checkpoint's detector with random rows for the classes to forget, as an MMEngine file."""
    torch.manual_seed(0)
    state = {k: v.clone() for k, v in torch.load(checkpoint)['state_dict'].items()}
    for name, value in state.items():
        if noise and value.is_floating_point():
            value += noise * torch.randn_like(value)
        if rows is not None and 'cls_branches' in name:
            value[:2] = -20 if name.endswith('bias') else rows * torch.randn_like(value[:2])
    return dict(state_dict=state, meta={})


@pytest.fixture
def oracle(tmp_path, tiny_checkpoint):
    """Neither of the other two, and without AP on the classes."""
    torch.save(changed(tiny_checkpoint, noise=1e-4), tmp_path / 'oracle.pth')
    return tmp_path / 'oracle.pth'


def record_from(original):
    """What the run of a task says that started from this file."""
    stay = [name for name in SHAPES if name not in GONE]
    task = dict(task=1, forget=GONE, old=[], retain=stay, missing=[])
    task['per_class'] = {**dict.fromkeys(GONE, 0.0), **dict.fromkeys(stay, 20.0)}
    task['metrics'] = dict(AP_f=0.0, AP_r=20.0)
    return dict(
        config='run.py',
        seed=0,
        original=original,
        pretrained=dict(per_class=dict.fromkeys(SHAPES, 20.0)),
        tasks=[task],
        # The oracle is nearly the same model: what it lacks is chance.
        thresholds=dict(relearning_gap_max=5),
    )


@pytest.fixture
def finished(tmp_path, tiny_cfg, tiny_checkpoint):
    """A work_dir with what the audit reads: config, record, merged model."""
    work_dir = tmp_path / 'run'
    (work_dir / 'merged').mkdir(parents=True)
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from = str(tiny_checkpoint)
    cfg.audit = QUICK
    cfg.dump(work_dir / 'run.py')
    torch.save(changed(tiny_checkpoint), work_dir / 'merged/task_01.pth')
    (work_dir / 'forgetting.json').write_text(json.dumps(record_from(str(tiny_checkpoint))))
    return work_dir


def content(work_dir) -> dict:
    return json.loads((work_dir / 'audit.json').read_text())


def test_a_whole_audit(tool, finished, oracle, capsys):
    tool.main([str(finished), '--oracle', str(oracle), '--seeds', '0', '--head-only'])
    found = content(finished)
    assert found['forgotten_classes'] == GONE
    assert found['files'].keys() == {'unlearned', 'original', 'oracle', 'head only', 'config'}
    assert found['settings']['train_images'] == 20
    measured = {row['measure'].split('/')[0] for row in found['rows']}
    assert measured == {
        *(
            'output',
            'outcomes',
            'localisation',
            'probe',
            'prototype',
            'membership',
            'divergence',
        ),
        *('relearning', 'new_head', 'damage'),
    }
    values = {(r['model'], r['measure']): r['value'] for r in found['rows']}
    near, far = (values[model, 'divergence/oracle_forget'] for model in ('unlearned', 'original'))
    assert near < far / 10
    assert values['unlearned', 'output/AP_gone'] < values['original', 'output/AP_gone']
    # The control: nothing of the classes in the output, everything inside, nobody else touched.
    assert values['head only', 'output/AP_gone'] == values['head only', 'outcomes/found'] == 0
    for measure in ('output/AP_r', 'probe/decoder.1', 'new_head/k16/step20'):
        assert values['head only', measure] == values['original', measure]
    assert (
        values['unlearned', 'localisation/forget'] == values['original', 'localisation/forget'] > 30
    )
    assert abs(values['unlearned', 'relearning/k2/lead']) < 5
    printed = capsys.readouterr().out
    assert 'Verdict: gone from the output' in printed  # 16 images were not tried
    assert 'audit.json' in printed


def test_what_another_run_measured_is_not_measured_again(tool, finished, tmp_path, monkeypatch):
    """Another run, whose config has other comments, steps and views: the same original."""
    command = ['--measures', 'outcomes', '--seeds', '0']
    tool.main([str(finished), *command])
    other = tmp_path / 'other'
    shutil.copytree(finished, other)
    (other / 'audit.json').unlink()
    config = (other / 'run.py').read_text()
    (other / 'run.py').write_text(f'# Another.\n{config}\ntrain_cfg.update(epochs_per_task=9)\n')
    state = torch.load(other / 'merged/task_01.pth')
    state['state_dict']['bbox_head.cls_branches.0.bias'] += 1
    torch.save(state, other / 'merged/task_01.pth')
    measured, measure = [], tool.Audit.measure
    monkeypatch.setattr(tool.Audit, 'measure', lambda *a: (measured.append(a[2]), measure(*a))[1])
    tool.main([str(other), *command, '--known', str(finished / 'audit.json')])
    assert set(measured) == {'unlearned'}
    first, second = content(finished), content(other)
    rows = [[r for r in found['rows'] if r['model'] == 'original'] for found in (first, second)]
    assert rows[0] == rows[1] and first['nearest'] == second['nearest']
    (other / 'audit.json').unlink()
    tool.main([str(other), *command, '--models', 'unlearned'])
    assert {row['model'] for row in content(other)['rows']} == {'unlearned'}
    with pytest.raises(ForgettingError, match="--models 'oracle' is not in this audit; there are"):
        tool.main([str(other), *command, '--models', 'oracle'])
    with pytest.raises(ForgettingError, match="--known 'no.json' is no audit.json"):
        tool.main([str(other), *command, '--known', 'no.json'])
    with pytest.raises(ForgettingError, match='--known .*forgetting.json. is no audit.json'):
        tool.main([str(other), *command, '--known', str(finished / 'forgetting.json')])


def test_it_goes_on_where_it_was(tool, finished, monkeypatch, capsys):
    command = [str(finished), '--measures', 'outcomes']
    tool.main(command)
    before = content(finished)
    assert before['verdict']['verdict'].startswith('gone from the output')
    assert 'Without an oracle' in before['cannot_conclude'][0]
    assert before['nearest']

    def measured(self, unit, model, lr):
        raise AssertionError(f'{unit} of {model} is there already')

    monkeypatch.setattr(tool.Audit, 'measure', measured)
    tool.main(command)
    assert content(finished) == before
    with pytest.raises(AssertionError, match='probe of unlearned'):
        tool.main([str(finished), '--measures', 'outcomes', 'probe'])
    state = torch.load(finished / 'merged/task_01.pth')
    state['state_dict']['bbox_head.cls_branches.0.bias'] += 1
    torch.save(state, finished / 'merged/task_01.pth')
    with pytest.raises(AssertionError, match='output of unlearned'):
        tool.main(command)


def damaged(checkpoint, path, change):
    found = copy.deepcopy(torch.load(checkpoint))
    change(found)
    torch.save(found, path)
    return str(path)


def test_a_model_that_knows_the_classes_is_no_oracle(tool, finished, tiny_checkpoint, tmp_path):
    record = json.loads((finished / 'forgetting.json').read_text())
    record['pretrained']['per_class'] = dict.fromkeys(SHAPES, 0.01)
    (finished / 'forgetting.json').write_text(json.dumps(record))
    torch.save(changed(tiny_checkpoint, rows=None, noise=1e-5), tmp_path / 'similar.pth')
    with pytest.raises(ForgettingError, match='is no oracle: its AP_gone is'):
        tool.main(
            [str(finished), '--oracle', str(tmp_path / 'similar.pth'), '--measures', 'output']
        )


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (torch.load, 'it has the weights of the original model'),
        # With other rows it is the same model still.
        (lambda path: changed(path, rows=5e-3), 'it has the weights of the original model'),
        (lambda path: changed(path, rows=5e-3, noise=1e-5), 'the weights of the unlearned model'),
        (lambda path: changed(path, rows=0.0), "oracle '.*' is sealed"),
    ],
)
def test_a_model_of_the_audit_itself_is_no_oracle(
    tool, finished, tiny_checkpoint, tmp_path, monkeypatch, make, message
):
    torch.save(changed(tiny_checkpoint, noise=1e-5), finished / 'merged/task_01.pth')
    # Saved again, with other metadata: the files differ.
    torch.save(dict(make(tiny_checkpoint), meta=dict(again=True)), tmp_path / 'again.pth')
    monkeypatch.setattr(tool.Audit, 'measure', lambda *_: pytest.fail('it was measured'))
    with pytest.raises(ForgettingError, match=message):
        tool.main([str(finished), '--oracle', str(tmp_path / 'again.pth')])


def test_a_sealed_model_is_not_audited(tool, finished, tiny_checkpoint):
    torch.save(changed(tiny_checkpoint, rows=0.0), finished / 'merged/task_01.pth')
    with pytest.raises(ForgettingError, match=r"unlearned '.*task_01.pth' is sealed"):
        tool.main([str(finished)])


def test_a_file_that_the_run_did_not_measure_is_not_audited(tool, finished):
    record = json.loads((finished / 'forgetting.json').read_text())
    record['tasks'][0]['merged'] = dict(path='merged/task_01.pth', sha256='0' * 64)
    (finished / 'forgetting.json').write_text(json.dumps(record))
    with pytest.raises(ForgettingError, match='was changed after the run had measured it'):
        tool.main([str(finished)])


def test_the_original_is_elsewhere(tool, tmp_path, tiny_cfg, monkeypatch):
    """The record names an address, as those of earlier runs do, and the hash of what was there."""
    work_dir, base = tmp_path / 'run', tmp_path / 'fetched.pth'
    (work_dir / 'merged').mkdir(parents=True)
    for path in (work_dir / 'merged/task_01.pth', base):
        path.write_text(path.name)
    tiny_cfg.dump(work_dir / 'run.py')
    record = record_from('https://nowhere.invalid/original.pth')
    record['original_sha256'] = sha256(base)
    (work_dir / 'forgetting.json').write_text(json.dumps(record))
    with pytest.raises(ForgettingError, match="'https.*' does not exist; .*--base names another"):
        tool.main([str(work_dir)])
    with pytest.raises(ForgettingError, match="original model 'no.pth' does not exist"):
        tool.main([str(work_dir), '--base', 'no.pth'])
    other = str(work_dir / 'merged/task_01.pth')
    with pytest.raises(ForgettingError, match=f'{other}. is not the original that the run began'):
        tool.main([str(work_dir), '--base', other])

    class ReachedError(Exception): ...

    def models(cfg, paths, *_):
        raise ReachedError(paths[tool.ORIGINAL])

    monkeypatch.setattr(tool, '_audit', models)
    with pytest.raises(ReachedError, match=str(base)):
        tool.main([str(work_dir), '--base', str(base)])


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), 'is cut off or no checkpoint'),
        (lambda path: path.write_text('hello'), 'is cut off or no checkpoint'),
        (lambda path: torch.save([1], path), 'holds a list and no checkpoint'),
        (lambda path: spoil_a_value(path), "NaN or infinite values in 'level_embed'"),
    ],
)
def test_a_broken_file_is_named(tool, finished, oracle, spoil, message):
    for path, flags in ((oracle, ['--oracle', str(oracle)]), (finished / 'merged/task_01.pth', [])):
        spoil(path)
        with pytest.raises(ForgettingError, match=f'{path.name}.*{message}'):
            tool.main([str(finished), *flags])
        path.write_bytes(oracle.read_bytes())


def spoil_a_value(path):
    checkpoint = torch.load(path)
    checkpoint['state_dict']['level_embed'][0, 0] = float('nan')
    torch.save(checkpoint, path)


def test_audit_and_run_give_one_number(tool, run_cfg, monkeypatch):
    run_cfg.val_dataloader.batch_size = 5
    run_cfg.train_cfg.protocol.tasks = [['circle', 'square']]
    run_cfg.audit = QUICK
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    run_cfg.dump(f'{runner.work_dir}/run.py')
    record = json.loads(Path(runner.work_dir, 'forgetting.json').read_text())
    metrics = record['tasks'][0]['metrics']

    def found():
        tool.main([runner.work_dir, '--measures', 'output'])
        return {
            row['measure'].removeprefix('output/'): row['value']
            for row in content(Path(runner.work_dir))['rows']
            if row['model'] == 'unlearned'
        }

    taken = found()
    assert (taken['AP_gone'], taken['AP_r']) == (metrics['AP_f'], metrics['AP_r'])
    Path(runner.work_dir, 'audit.json').unlink()
    monkeypatch.setattr(tool, '_known', lambda *_: {})
    assert found() == pytest.approx(taken, abs=1e-9)
    assert max(taken.values()) > 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['state_dict'].pop('neck.convs.0.conv.weight'), "'neck.convs.0.conv.weight'"),
        (lambda c: c['state_dict'].update(more=torch.zeros(1)), "'more'"),
        (
            lambda c: c['state_dict'].update({'level_embed': torch.zeros(3, 8)}),
            "another architecture than the run: the first of 1 .* is 'level_embed'",
        ),
        (lambda c: c['meta'].update(dataset_meta=dict(classes=['cat'])), 'knows the classes cat'),
    ],
)
def test_an_oracle_of_something_else(tool, finished, tiny_checkpoint, tmp_path, change, message):
    oracle = damaged(tiny_checkpoint, tmp_path / 'other.pth', change)
    with pytest.raises(ForgettingError, match=message):
        tool.main([str(finished), '--oracle', oracle])


def test_an_original_as_published(tool, tiny_cfg, tmp_path):
    classes = ('cat', 'dog')
    model = MODELS.build(copy.deepcopy(tiny_cfg.model.detector))
    model.init_weights()  # or 'level_embed' is whatever was in memory
    state = model.state_dict()
    extras = {'data_preprocessor.mean': torch.zeros(3, 1, 1)}
    checkpoint = dict(state_dict=state | extras, meta=dict(CLASSES=classes))
    torch.save(checkpoint, tmp_path / 'published.pth')

    def load(*names):
        data = SimpleNamespace(classes=names)
        return tool._load(tiny_cfg.model.detector, tmp_path / 'published.pth', 'original', data)

    key = 'query_embedding.weight'
    assert torch.equal(load(*classes).state_dict()[key], state[key])
    with pytest.raises(ForgettingError, match='knows the classes cat, dog'):
        load('dog', 'cat')


def test_what_is_missing_is_named(tool, finished, tmp_path):
    with pytest.raises(ForgettingError, match='forgetting.json'):
        tool.main([str(tmp_path)])
    with pytest.raises(ForgettingError, match='--task is 2; .* has finished task 1'):
        tool.main([str(finished), '--task', '2'])
    with pytest.raises(ForgettingError, match="oracle model 'no.pth' does not exist"):
        tool.main([str(finished), '--oracle', 'no.pth'])
    with pytest.raises(ForgettingError, match="no setting 'lr'; allowed are .*relearning_lr"):
        tool.main([str(finished), '--cfg-options', 'lr=1'])
    (finished / 'merged/task_01.pth').unlink()
    with pytest.raises(ForgettingError, match='forgotten model .*task_01.pth. does not exist'):
        tool.main([str(finished)])


def test_classes_never_seen_instead_of_an_oracle(tool, finished, tmp_path):
    def write(name, shapes):
        made = dict(train=12, val=1, test=6, size=64, shapes=list(shapes))
        common = dict(type='ShapesDataset', data_root=f'{tmp_path / name}/', generate=made)
        parts = {
            part: dict(
                common, ann_file=f'annotations/{split}.json', data_prefix=dict(img=f'{split}/')
            )
            for part, split in (('train', 'train'), ('held_out', 'test'))
        }
        (tmp_path / f'{name}.py').write_text(f'unseen = {parts!r}')
        return ['--unseen', str(tmp_path / f'{name}.py'), '--seeds', '0', '--measures', 'new_head']

    with pytest.raises(ForgettingError, match='is no config file'):
        tool.main([str(finished), '--unseen', str(tmp_path / 'none.py')])
    with pytest.raises(ForgettingError, match='is no config file with the data sets unseen.train'):
        tool.main([str(finished), '--unseen', str(finished / 'run.py')])
    with pytest.raises(ForgettingError, match='in this order they must be NEW, NEW, triangle'):
        tool.main([str(finished), *write('same', SHAPES)])
    tool.main([str(finished), *write('new', ['pentagon', 'kite', *SHAPES[2:]])])
    found = content(finished)
    assert found['files']['unseen']['path'] == str(tmp_path / 'new.py')
    assert 'above classes never seen' in found['verdict']['checks'][-1]['measure']
