"""Held-out data that cannot say whether a class is forgotten: said before anything is measured."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmgslora.datasets import SHAPES
from mmgslora.errors import ForgettingError


def test_a_task_without_any_object(tiny_cfg, shapes_root, tmp_path):
    cfg = copy.deepcopy(tiny_cfg)
    path = shapes_root / 'annotations/val.json'
    content = json.loads(path.read_text())
    (star,) = (c['id'] for c in content['categories'] if c['name'] == 'star')
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] != star]
    (tmp_path / 'val.json').write_text(json.dumps(content))
    cfg.test_dataloader.dataset.update(
        type='CocoDataset', ann_file=str(tmp_path / 'val.json'), metainfo=dict(classes=SHAPES)
    )
    cfg.test_dataloader.dataset.pop('generate')
    cfg.test_evaluator.ann_file = str(tmp_path / 'val.json')
    cfg.load_from = str(tmp_path / 'random.pth')
    detector = MODELS.build(copy.deepcopy(cfg.model.detector))
    torch.save(dict(state_dict=detector.state_dict()), cfg.load_from)
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'run'), tmp_path.name
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ForgettingError, match='Task 2 forgets star, and the data .* no object'):
        runner.train()
    assert not list(Path(cfg.work_dir).rglob('*.pth'))
