"""A noised copy that learns again: a whole run in both families, and after a kill."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmgslora.engine import image_hook
from mmgslora.errors import ForgettingError
from mmgslora.lora import apply_adapter

from .stopped import whole_and_resumed
from .test_methods_in_families import classifier

TARGET = r'(decoder|bbox_head)\..*'


def undo(run_cfg, teacher=None):
    """The tiny detector's run, with the original itself as the model that forgot."""
    cfg = copy.deepcopy(run_cfg)
    noise = dict(decoder=0.5)
    cfg.model.method = dict(type='UNDO', teacher=teacher or cfg.load_from, noise=noise)
    cfg.model.tune = dict(type='Full', target=TARGET)
    cfg.train_cfg.protocol = dict(tasks=[['circle', 'square']], missing=[])
    return cfg


def other_teacher(cfg, name):
    """The original with one weight changed, as a file."""
    state = torch.load(cfg.load_from)['state_dict']
    state[name] = state[name] + 0.25
    path = Path(cfg.load_from).with_name(f'{name}.pth')
    torch.save(dict(state_dict=state), path)
    return str(path)


def test_detector(run_cfg, pictures, monkeypatch):
    teacher = other_teacher(run_cfg, 'decoder.layers.1.ffn.layers.1.bias')
    cfg = undo(run_cfg, teacher)
    drawn, look = [], image_hook._look

    def keeping(runner, *args):
        state = runner.train_loop.model.plain_model.state_dict()
        drawn.append({name: value.clone() for name, value in state.items()})
        return look(runner, *args)

    monkeypatch.setattr(image_hook, '_look', keeping)
    with pictures():
        Runner.from_cfg(copy.deepcopy(cfg)).train()
    record = json.loads(Path(cfg.work_dir, 'forgetting.json').read_text())
    assert record['method']['noise'] == dict(decoder=0.5)
    assert record['original'] == cfg.load_from and record['tasks'][0]['steps'] > 0
    before = torch.load(cfg.load_from)['state_dict']
    # "Before" in the image is the original, neither the teacher nor its noised copy.
    assert all(torch.equal(value, before[name]) for name, value in drawn[0].items())
    merged = torch.load(Path(cfg.work_dir, 'merged/task_01.pth'))['state_dict']
    changed = {name for name, value in merged.items() if not torch.equal(value, before[name])}
    assert {name.split('.')[0] for name in changed} == {'decoder', 'bbox_head'}
    model = MODELS.build(copy.deepcopy(cfg.model.detector))
    model.load_state_dict(before)
    apply_adapter(model, Path(cfg.work_dir, 'adapters/task_01'))
    assert all(torch.equal(value, merged[name]) for name, value in model.state_dict().items())


def test_the_model_becomes_the_noised_teacher(run_cfg):
    name = 'decoder.layers.1.ffn.layers.1.weight'
    runner = Runner.from_cfg(undo(run_cfg, other_teacher(run_cfg, name)))
    seen = {}

    class Stop(Exception):
        pass

    def before_train_epoch(*_):
        model = runner.train_loop.model
        seen.update(now=model.plain_model.state_dict()[name].clone(), random=model.untrained(1))
        with model.tune.teacher('teacher') as teacher:
            seen.update(teacher=teacher.state_dict()[name], encoder=teacher.encoder)
        seen.update(own=model.plain_model.encoder)
        raise Stop

    runner.train_loop._seed_epoch = before_train_epoch
    with pytest.raises(Stop):
        runner.train()
    before = torch.load(run_cfg.load_from)['state_dict'][name]
    assert torch.equal(seen['teacher'], before + 0.25)
    random = seen['random'].state_dict()[name]
    assert torch.allclose(seen['now'], (before + 0.25 + random) / 2, atol=1e-6)
    assert seen['encoder'] is seen['own']  # what does not learn is computed once


def test_a_teacher_that_differs_elsewhere_is_refused_before_anything_is_measured(
    run_cfg, monkeypatch
):
    monkeypatch.delattr('mmgslora.engine.loop.ContinualForgettingLoop._evaluate')
    runner = Runner.from_cfg(undo(run_cfg, other_teacher(run_cfg, 'query_embedding.weight')))
    with pytest.raises(ForgettingError, match="differs .*'query_embedding.weight', which is not"):
        runner.train()


def test_classifier(repo_root, run_cfg, tmp_path):
    config = Config.fromfile(repo_root / 'configs/baselines/scrub_classification_forget.py')
    cfg, _ = classifier(config, run_cfg, tmp_path)
    cfg.model.method = dict(type='UNDO', teacher=cfg.load_from, noise=0.3)
    cfg.model.tune = dict(type='Full')
    Runner.from_cfg(cfg).train()
    record = json.loads(Path(cfg.work_dir, 'forgetting.json').read_text())
    assert len(record['tasks']) == 2 and record['method']['noise'] == 0.3


def test_killed_in_a_task_and_resumed(run_cfg, monkeypatch):
    """The teacher, and what the reader of classes knows, are in the checkpoint."""
    monkeypatch.setattr('mmgslora.methods.confusion._WARM_UP', 2)

    cfg = undo(run_cfg)
    cfg.train_cfg.protocol = run_cfg.train_cfg.protocol
    cfg.model.method.ramp = 0.0
    whole, parts = (run.model for run in whole_and_resumed(cfg, stop=3))
    assert parts.method.state_dict()['ClassConfusion']['steps'] > 0
    state = parts.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(state[name], value), name
