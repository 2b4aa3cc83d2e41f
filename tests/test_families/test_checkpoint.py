"""Checkpoints in the layouts that MMDetection, its hooks and this package write."""

import re

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.families import checkpoint
from mmgslora.families.checkpoint import class_names, fitting_weights, without_extras
from mmgslora.tuning import LoRA

OWN = {
    'backbone.conv1.weight': torch.zeros(8, 3, 7, 7),
    'backbone.bn1.num_batches_tracked': torch.tensor(5),
    'bbox_head.fc_cls.weight': torch.zeros(81, 4),
    'bbox_head.fc_cls.lora_A': torch.full((2, 4), 3.0),
}
NEEDED = {
    'backbone.conv1.weight': torch.ones(8, 3, 7, 7),
    'bbox_head.fc_cls.weight': torch.ones(81, 4),
}
EXTRAS = {
    'data_preprocessor.mean': torch.zeros(3, 1, 1),
    'data_preprocessor.std': torch.ones(3, 1, 1),
    # mmcv's EMAHook: dots of a parameter's name become underscores in its buffer's.
    'ema_backbone_conv1_weight': torch.ones(8, 3, 7, 7),
    'neck.bn.num_batches_tracked': torch.tensor(9),
}


@pytest.fixture
def lines(monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint, 'print_log', lambda line, **_: said.append(line))
    return said


def test_what_mmdetection_ignores_is_ignored_with_one_line(lines):
    found = without_extras(NEEDED | EXTRAS, OWN)
    assert found.keys() == NEEDED.keys() | {'backbone.bn1.num_batches_tracked'}
    assert found['backbone.bn1.num_batches_tracked'] == 5  # the file has none: the model's stays
    assert lines == [
        'Ignored in the checkpoint, as by MMDetection: data_preprocessor (2), ema_ (1), '
        'num_batches_tracked (1).'
    ]


def test_nothing_is_said_where_nothing_is_ignored(lines):
    counter = {'backbone.bn1.num_batches_tracked': torch.tensor(7)}
    assert without_extras(NEEDED | counter, OWN) == NEEDED | counter
    assert lines == []


@pytest.mark.parametrize(
    ('names', 'said'),
    [
        ('module.{}', "'module.' of DistributedDataParallel"),
        ('_orig_mod.{}', "'_orig_mod.' of torch.compile"),
        ('module._orig_mod.{}', "'module.' of Distri.* and '_orig_mod.' of torch.compile"),
        ('_orig_mod.module.{}', "'module.' of Distri.* and '_orig_mod.' of torch.compile"),
    ],
)
def test_the_names_of_pytorchs_wrappers_go_with_one_line(lines, names, said):
    assert without_extras({names.format(k): v for k, v in NEEDED.items()}, NEEDED) == NEEDED
    (line,) = lines
    assert re.fullmatch(f'Names in the checkpoint are taken without {said}.', line)


def test_a_part_that_was_compiled_and_one_that_is_called_module():
    own = {'module.weight': torch.ones(1), 'backbone.my_orig_mod.bias': torch.ones(2)}
    assert without_extras(own, own) == own
    compiled = {key.replace('backbone', 'backbone._orig_mod'): v for key, v in own.items()}
    assert without_extras(compiled, own) == own


@pytest.mark.parametrize('prefix', ['backbone.', 'student.net.'])
def test_another_prefix_is_named(prefix):
    state = {f'{prefix}{key}': value for key, value in NEEDED.items()} | EXTRAS
    words = f'Every weight in the checkpoint has {prefix!r} .* anew without it, .*{prefix!r}'
    with pytest.raises(ForgettingError, match=words):
        fitting_weights(state, OWN, 'DETR', ADDED, ['detector'])


def test_a_model_keeps_names_that_look_like_extras(lines):
    own = OWN | {'ema_scale': torch.zeros(1)}
    assert 'ema_scale' in without_extras(NEEDED | {'ema_scale': torch.ones(1)}, own)
    assert lines == []


# A network of another library has a part that is called as the wrapper calls the whole.
ALEXNET = {
    'features.0.weight': torch.ones(2, 3),
    'classifier.1.bias': torch.ones(4),
}
ALL_CLASSIFIER = {'classifier.0.weight': torch.ones(2, 3)}


def of_wrapper(state, before=''):
    return {f'{before}classifier.{key}': value for key, value in state.items()}


@pytest.mark.parametrize('plain', [ALEXNET, ALL_CLASSIFIER, NEEDED])
@pytest.mark.parametrize('before', ['', 'module.'])
def test_the_name_of_a_wrapper_goes_where_every_weight_has_it(plain, before):
    wrappers = ('detector', 'classifier')
    others = {f'{before}data_preprocessor.mean': torch.ones(3), f'{before}ema_x': torch.ones(3)}
    for file in ({f'{before}{k}': v for k, v in plain.items()}, of_wrapper(plain, before)):
        assert without_extras(file | others, plain, wrappers) == plain


ADDED = LoRA().owns


def test_fitting_weights():
    found = fitting_weights(NEEDED | EXTRAS, OWN, 'DETR', ADDED)
    assert found.keys() == OWN.keys()
    assert torch.equal(found['bbox_head.fc_cls.weight'], torch.ones(81, 4))
    assert torch.equal(found['bbox_head.fc_cls.lora_A'], torch.full((2, 4), 3.0))
    theirs = {'bbox_head.fc_cls.lora_A': torch.ones(2, 4)}
    assert (
        fitting_weights(NEEDED | theirs, OWN, 'DETR', ADDED)['bbox_head.fc_cls.lora_A'].sum() == 8
    )


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            {'ema_model.backbone.conv1.weight': torch.ones(1)},
            "has 'ema_model.backbone.conv1.weight', which the configured DETR lacks",
        ),
        ({'student.conv.weight': torch.ones(1)}, "has 'student.conv.weight'.*another architecture"),
        (
            {'neck.bn.weight': torch.ones(1), 'neck.bn.num_batches_tracked': torch.tensor(1)},
            "has 'neck.bn.weight'",
        ),
        ({'backbone.conv1.lora_A': torch.ones(1)}, "adapter 'backbone.conv1.lora_A'.*merged"),
        ({'backbone.conv1.weight': None}, "no 'backbone.conv1.weight', which the .* DETR needs"),
        (
            {'backbone.conv1.weight': torch.ones(4, 3, 7, 7)},
            r"'backbone.conv1.weight' is \(4, 3, 7, 7\) .* \(8, 3, 7, 7\) in the configured DETR",
        ),
    ],
)
def test_weights_of_another_architecture(change, words):
    state = {key: value for key, value in (NEEDED | change).items() if value is not None}
    with pytest.raises(ForgettingError, match=words):
        fitting_weights(state, OWN, 'DETR', ADDED)


@pytest.mark.parametrize(
    ('meta', 'names'),
    [
        (dict(dataset_meta=dict(classes=('cat', 'dog'))), ('cat', 'dog')),
        (dict(dataset_meta=dict(CLASSES=['cat', 'dog'], PALETTE=[(1, 2, 3)])), ('cat', 'dog')),
        (dict(CLASSES=('cat', 'dog')), ('cat', 'dog')),
        (dict(classes=['cat', 'dog'], dataset_meta=None), ('cat', 'dog')),
        (dict(CLASSES='person'), ('person',)),
        (dict(dataset_meta=dict(classes='person')), ('person',)),
        (dict(CLASSES=None, dataset_meta={}), ()),
        (dict(epoch=12), ()),
        (None, ()),
    ],
)
def test_class_names(meta, names):
    assert class_names(dict(meta=meta)) == names
    assert class_names({}) == ()
