"""tools/audit.py on a run that looks finished: its model is the original with the head cut."""

import copy
import json
import sys

import pytest
import torch

from mmgslora.errors import ForgettingError

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


def cut_head(checkpoint):
    """The checkpoint's detector without rows for the classes to forget, as an MMEngine file."""
    state = {k: v.clone() for k, v in torch.load(checkpoint)['state_dict'].items()}
    for name, value in state.items():
        if 'cls_branches' in name:
            value[:2] = -20 if name.endswith('bias') else 0
    return dict(state_dict=state, meta={})


@pytest.fixture
def finished(tmp_path, tiny_cfg, tiny_checkpoint):
    """A work_dir with what the audit reads: config, record, merged model."""
    work_dir = tmp_path / 'run'
    (work_dir / 'merged').mkdir(parents=True)
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from = str(tiny_checkpoint)
    cfg.audit = QUICK
    cfg.dump(work_dir / 'run.py')
    torch.save(cut_head(tiny_checkpoint), work_dir / 'merged/task_01.pth')
    task = dict(
        task=1, forget=GONE, old=[], retain=[], missing=[], per_class={}, metrics=dict(AP_f=0.0)
    )
    per_class = dict.fromkeys(tiny_cfg.val_dataloader.dataset.get('classes', GONE), 20.0)
    record = dict(config='run.py', seed=0, pretrained=dict(per_class=per_class), tasks=[task])
    (work_dir / 'forgetting.json').write_text(json.dumps(record))
    return work_dir


def content(work_dir) -> dict:
    return json.loads((work_dir / 'audit.json').read_text())


def test_a_whole_audit(tool, finished, capsys):
    oracle = finished / 'merged/task_01.pth'
    tool.main([str(finished), '--oracle', str(oracle), '--seeds', '0'])
    found = content(finished)
    assert found['forgotten_classes'] == GONE
    assert found['files'].keys() == {'unlearned', 'original', 'oracle', 'config'}
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
    # Ours and the oracle are one file here.
    values = {(r['model'], r['measure']): r['value'] for r in found['rows']}
    assert values['unlearned', 'probe/decoder.1'] == values['oracle', 'probe/decoder.1']
    assert values['unlearned', 'divergence/oracle_forget'] == pytest.approx(0, abs=1e-9)
    assert values['original', 'divergence/oracle_forget'] > 0
    assert values['unlearned', 'output/AP_f'] < values['original', 'output/AP_f']
    assert (
        values['unlearned', 'localisation/forget'] == values['original', 'localisation/forget'] > 30
    )
    assert values['unlearned', 'relearning/k2/lead'] == 0
    printed = capsys.readouterr().out
    assert 'Verdict: gone from the output' in printed  # 16 images were not tried
    assert 'audit.json' in printed


def test_it_goes_on_where_it_was(tool, finished, monkeypatch, capsys):
    command = [str(finished), '--measures', 'outcomes']
    tool.main(command)
    before = content(finished)
    assert before['verdict']['verdict'].startswith('gone from the output')
    assert 'Without an oracle' in before['cannot_conclude'][0]
    assert before['nearest']

    def measured(self, unit, model):
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


def test_the_original_is_no_oracle(tool, finished, tiny_checkpoint):
    # The tiny detector's APs are far below 1 %.
    record = json.loads((finished / 'forgetting.json').read_text())
    record['pretrained']['per_class'] = dict.fromkeys(GONE, 0.01)
    (finished / 'forgetting.json').write_text(json.dumps(record))
    with pytest.raises(ForgettingError, match='is no oracle: its AP_f is'):
        tool.main([str(finished), '--oracle', str(tiny_checkpoint), '--measures', 'output'])


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
