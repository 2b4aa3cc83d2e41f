"""A method takes its own settings and no others; the control has no forget term."""

import pytest
from mmengine.config import Config

from mmgslora.errors import ForgettingError
from mmgslora.methods import GSLoRA, GSLoRAPlusPlus, GuidedGSLoRA, RetainOnly, build_method

from .views import context, view


def test_settings_of_the_class_and_of_those_below_it():
    pp = build_method(dict(type='GSLoRAPlusPlus', prototype_weight=0.1, beta=0.3, bound=4))
    assert type(pp) is GSLoRAPlusPlus and (pp.prototype_weight, pp.beta, pp.bound) == (0.1, 0.3, 4)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (
            dict(type='GSLoRA', beta=0.1, distill_weight=1.0),
            "GSLoRA has no setting 'distill_weight'.*; allowed are bound, beta, sparsity, dropout",
        ),
        (dict(type='GSLoRA', forget_loss='odds'), "no setting 'forget_loss'; allowed"),
        (
            dict(type='GSLoRAPlusPlus', distill_weight=0.5),
            "no setting 'distill_weight'.*prototype_weight, feature_pull_weight",
        ),
        (dict(type='GSLoRAPlusPlus', prototype_wieght=1), "did you mean 'prototype_weight'"),
        (dict(type='GuidedGSLoRA', prototype_weight=1), "GuidedGSLoRA has no setting 'prototype_w"),
        (dict(type='GSLora'), "'GSLora' .did you mean 'GSLoRA'.*GSLoRAPlusPlus, GuidedGSLoRA"),
        (dict(type='ImageClassifier'), "'ImageClassifier'.*allowed are"),
        (dict(), 'method.type is None'),
    ],
)
def test_refused_with_the_allowed_names(config, words):
    with pytest.raises(ForgettingError, match=words):
        build_method(config)


def test_the_config_stays_as_it_is():
    config = Config(dict(method=dict(type='GSLoRA', sparsity=dict(by='module')))).method
    method = build_method(config)
    assert type(method) is GSLoRA and config.type == 'GSLoRA'
    assert method.settings() == dict(
        bound=15.0,
        beta=(0.015, 0.03, 0.14, 0.13, 0.13, 0.15, 0.15),
        sparsity=dict(mode='penalty', alpha=3e-4, by='module', warmup_epochs=0, select=1 / 3),
        dropout=True,
    )


@pytest.mark.parametrize('override', ['GSLoRA', 'GSLoRAPlusPlus', 'RetainOnly'])
def test_type_alone_on_the_command_line(repo_root, override):
    """The demo's config sets nothing, so any method may take its place."""
    cfg = Config.fromfile(repo_root / 'configs/gslora_shapes_forget.py')
    assert type(build_method(cfg.model.method)) is GuidedGSLoRA
    cfg.merge_from_dict({'model.method.type': override})
    assert type(build_method(cfg.model.method)).__name__ == override


def test_type_alone_over_settings_of_another_method(repo_root):
    cfg = Config.fromfile(repo_root / 'configs/face/gslora_face_forget.py')
    cfg.merge_from_dict({'model.method.type': 'GSLoRA'})
    allowed = "no setting 'forget_loss'.*; allowed are "
    with pytest.raises(ForgettingError, match=allowed):
        build_method(cfg.model.method)


def test_retain_only_is_the_retain_terms():
    method = build_method(dict(type='RetainOnly'))
    losses = method.losses(dict(retain=view('retain', 3.0, [[0.0]])), context())
    assert losses == dict(retain_loss_cls=3.0, retain_loss_bbox=0.5, retain_loss_iou=0.25)
    assert isinstance(method, RetainOnly) and not method.teachers and not method.dropout
    assert method.sides == ('retain',)
