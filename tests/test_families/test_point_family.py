"""A family that the package does not know runs a whole request: a fourth family is a folder."""

import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmgslora.lora import apply_adapter

from . import point_family  # noqa: F401

TUNE = dict(LoRA=dict(type='LoRA', target='body', rank=2), Full=dict(type='Full'))


def loader(seed, **dataset):
    points = dict(type='Points', metainfo=dict(seed=seed))
    return dict(
        batch_size=16,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=points,
    )


@pytest.fixture(params=TUNE)
def finished(request, tmp_path, repo_root, pictures):
    """A trained linear model that forgot two of its four classes, one after the other."""
    torch.manual_seed(0)
    plain = MODELS.build(dict(type='PointModel'))
    data = torch.utils.data.default_collate
    points = point_family.Points(metainfo=dict(seed=0))
    inputs = data([points[i]['inputs'] for i in range(80)])
    labels = data([points.get_data_info(i)['gt_label'] for i in range(80)])
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(inputs)[0], labels).backward()
        optimizer.step()
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    forgetting = Config.fromfile(repo_root / 'configs/_base_/forgetting.py')
    measured = loader(1)
    train = loader(0)
    train.update(
        sampler=dict(type='PairedSampler'),
        dataset=dict(type='ForgettingViews', dataset=train['dataset'], data_ratio=1.0),
    )
    sparsity = dict(mode='proximal' if request.param == 'LoRA' else 'none')
    guided = dict(type='GuidedGSLoRA', forget_loss='odds', distill_weight=20, background_weight=0)
    cfg = Config(
        dict(
            default_scope='mmengine',
            model=dict(
                type='ForgettingPoints',
                points=dict(type='PointModel'),
                tune=TUNE[request.param],
                method=dict(guided, beta=1, sparsity=sparsity),
            ),
            load_from=str(tmp_path / 'plain.pth'),
            work_dir=str(tmp_path / 'run'),
            experiment_name=tmp_path.name,
            train_dataloader=train,
            test_dataloader=measured,
            test_evaluator=dict(type='ForgettingAccuracyMetric'),
            test_cfg=dict(type='TestLoop'),
            train_cfg=dict(
                type='ContinualForgettingLoop',
                protocol=dict(tasks=[['north'], ['west']]),
                epochs_per_task=8,
            ),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.03)),
            custom_hooks=forgetting.custom_hooks,
            randomness=dict(seed=0),
            log_level='WARNING',
        )
    )
    runner = Runner.from_cfg(cfg)
    with pictures():
        runner.train()
    return runner


def test_a_whole_request(finished, repo_root, monkeypatch):
    work_dir = Path(finished.work_dir)
    record = json.loads((work_dir / 'forgetting.json').read_text())
    assert record['family'] == 'points' and len(record['tasks']) == 2
    last = record['tasks'][1]['metrics']
    assert last['Acc_f'] < 10 and last['Acc_o'] < 10 and last['Acc_r'] > 90
    assert (work_dir / 'before_after.png').stat().st_size > 0

    model = MODELS.build(dict(type='PointModel'))
    model.load_state_dict(torch.load(work_dir.parent / 'plain.pth')['state_dict'])
    for task in (1, 2):
        apply_adapter(model, work_dir / f'adapters/task_0{task}')
    merged = torch.load(work_dir / 'merged/task_02.pth')
    plain = Config.fromstring(merged['meta']['cfg'], '.py')  # says what the family says
    assert plain.test_dataloader.dataset.metainfo.classes == point_family.CLASSES
    merged = merged['state_dict']
    assert all(torch.equal(value, merged[name]) for name, value in model.state_dict().items())

    monkeypatch.syspath_prepend(str(repo_root / 'tools'))
    for tool in ('audit', 'report'):
        sys.modules.pop(tool, None)
    import audit
    import report

    flags = ['--measures', 'outcomes', 'probe', 'relearning', '--seeds', '0']
    audit.main([str(work_dir), *flags, '--cfg-options', 'relearning_images=[4]'])
    rows = json.loads((work_dir / 'audit.json').read_text())['units']
    assert any('probe' in name for name in rows)
    report.main([str(work_dir)])
    page = (work_dir / 'report.html').read_text()
    assert 'north' in page and 'probe' in page.lower()
