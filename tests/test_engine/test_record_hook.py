"""What the record keeps for the report, and that nothing drawn can cost it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from mmgslora.engine import record_hook
from mmgslora.errors import ForgettingError
from mmgslora.records.finished_run import FinishedRun
from mmgslora.report.page import report_page


def test_a_run_whose_figure_fails_has_its_record(
    run_cfg, tiny_checkpoint, monkeypatch, pictures, tmp_path
):
    run_cfg.train_cfg.update(epochs_per_task=1, protocol=dict(tasks=[['circle'], ['star']]))
    run_cfg.requests = [None, dict(requested_by='Ann', date='2026-01-31')]
    run_cfg.thresholds = dict(forgotten_max=5)
    run_cfg.load_from = 'https://nowhere.invalid/v3/original.pth?download=1'
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(
        torch.hub,
        'download_url_to_file',
        lambda _, to, *more, **_2: shutil.copy(tiny_checkpoint, to),
    )

    def fail(*_):
        raise ValueError('no\nfont')

    monkeypatch.setattr(record_hook, 'forgetting_figure', fail)
    runner = Runner.from_cfg(run_cfg)
    with pictures():
        runner.train()
    work_dir = Path(runner.work_dir)
    record = json.loads((work_dir / 'forgetting.json').read_text())
    assert [task['task'] for task in record['tasks']] == [1, 2]
    log = next(work_dir.glob('*/*.log')).read_text()
    assert f'{work_dir}/forgetting.png was not drawn: no font' in log

    def hash_of(path):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    for task in record['tasks']:
        path = f'merged/task_{task["task"]:02d}.pth'
        assert task['merged'] == dict(path=path, sha256=hash_of(work_dir / path))
    assert record['original_sha256'] == hash_of(tiny_checkpoint)
    assert record['original'] == str(tmp_path / 'hub/checkpoints/original.pth')
    assert record['original_url'] == run_cfg.load_from
    assert record['protocol']['tasks'] == [['circle'], ['star']]
    assert record['requests'][1]['requested_by'] == 'Ann'
    # The record is all that a report needs.
    for config in work_dir.glob('*.py'):
        config.write_text('raise SystemExit')
    run = FinishedRun(work_dir)
    assert run.thresholds == dict(forgotten_max=5) and run.split == record['split']
    assert '2026-01-31' in report_page(run)


@pytest.mark.parametrize(
    ('said', 'message'),
    [
        (dict(requests=[dict(by='Ann')]), "'by'.*; allowed are requested_by"),
        (dict(requests=[None] * 3), 'requests has 3 entries, but the run has 2 tasks'),
        (dict(thresholds=dict(retained_min_share=95)), 'retained_min_share is 95'),
    ],
)
def test_what_cannot_be_meant_is_refused_before_training(run_cfg, said, message):
    run_cfg.update(said)
    runner = Runner.from_cfg(run_cfg)
    with pytest.raises(ForgettingError, match=message):
        runner.train()
    assert not Path(runner.work_dir, 'forgetting.json').exists()
