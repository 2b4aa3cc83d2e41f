"""Every command that is said to be the authors' has their numbers, whatever lies underneath it.

Sources: the scripts of https://github.com/bjzhb666/GS-LoRA, branches object-det (fe1dfd6 for CVPR,
ea8457f for one task, a4cd83c for the journal) and master (a92fb97).
"""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmgslora.methods import GSLoRA, GSLoRAPlusPlus, build_method

ROOT = Path(__file__).parents[1]

CVPR = (0.015, 0.03, 0.14, 0.13, 0.13, 0.15, 0.15)
JOURNAL = (0.15, 0.15, 0.35, 0.6, 0.15, 0.2, 0.2)
COCO = dict(
    bound=15, alpha=3e-4, warmup=0, epochs=30, lr=3e-4, min_lr=3e-4, decay=1e-4, clip=0.1,
    few_shot=None, data_ratio=0.1, batch=4, gpus_batch=32, sizes=[10] * 7, missing=0, steps=None,
)  # fmt: skip
# Faces and ImageNet100, four tasks of twenty classes.
CONTINUAL = dict(
    bound=105, alpha=1e-4, warmup=0, epochs=100, lr=1e-2, min_lr=1e-5, decay=0.05, clip=None,
    few_shot=None, data_ratio=0.1, batch=96, gpus_batch=None, sizes=[20] * 4, missing=0, steps=None,
)  # fmt: skip
SINGLE = dict(CONTINUAL, bound=110, alpha=0.01, warmup=20, sizes=[10])
# The demo has the authors' methods with the numbers for COCO; all else is the demo's own.
DEMO = dict(bound=15, alpha=3e-4, warmup=0)


def pp(weights, bound=18, source='embeddings'):
    """What GS-LoRA++ adds: w_f, BND_pro, and what prototypes are made of; w_r is 0."""
    return dict(prototypes=(weights, 0, bound, source))


HEAD = pp((0.005,), source='head')
# Batches count both views: 2 or 4 images of each on a GPU, 48 of each, or 4 of each (few-shot).
THEIRS = {
    'gslora_coco_forget_paper.py': dict(COCO, beta=CVPR),
    'gslora_coco_single_step_paper.py': dict(COCO, beta=(0.015,), sizes=[10]),
    'gslora_pp_coco_few_shot_paper.py': dict(
        COCO, **HEAD, beta=JOURNAL, few_shot=32, batch=8, gpus_batch=64
    ),
    'gslora_eighty_forget_paper.py': dict(COCO, beta=CVPR, batch=32, gpus_batch=None),
    'gslora_shapes_forget_paper.py': dict(DEMO, beta=CVPR),
    'gslora_shapes_missing_paper.py': dict(DEMO, beta=CVPR, missing=2),
    'gslora_pp_shapes_forget_paper.py': dict(DEMO, **HEAD, beta=JOURNAL),
    'face/gslora_casia100_forget_paper.py': dict(CONTINUAL, beta=(0.2, 0.25, 0.25, 0.2)),
    'face/gslora_pp_casia100_forget_paper.py': dict(
        CONTINUAL, **pp((0.01,)), beta=(0.2, 0.25, 0.25, 0.2)
    ),
    'face/gslora_pp_casia100_few_shot_paper.py': dict(
        CONTINUAL,
        **pp((0.015, 0.06, 0.025, 0.012), bound=50),
        beta=(0.3, 0.4, 0.28, 0.2),
        few_shot=4,
        batch=8,
    ),
    'face/gslora_pp_casia100_missing_paper.py': dict(
        CONTINUAL, **pp((3e-4,)), beta=(0.14, 0.14, 0.2, 0.15), alpha=0.015, warmup=30, missing=5
    ),
    'face/gslora_casia100_single_step_paper.py': dict(SINGLE, beta=(0.05,)),
    'face/gslora_pp_casia100_single_step_paper.py': dict(SINGLE, **pp((0.005,)), beta=(0.05,)),
    'face/gslora_pp_casia100_single_step_few_shot_paper.py': dict(
        SINGLE, **pp((0.5,)), beta=(0.15,), few_shot=2, batch=8
    ),
    'classification/gslora_imagenet100_forget_paper.py': dict(
        CONTINUAL, beta=(0.2, 0.25, 0.25, 0.25), data_ratio=0.05
    ),
    'classification/gslora_pp_imagenet100_forget_paper.py': dict(
        CONTINUAL, **pp((0.05,)), beta=(0.2, 0.25, 0.25, 0.25), data_ratio=0.05
    ),
}


# The demos of the other families have theirs among the baselines.
BASELINES = ('classification', 'face')


def numbers(value):
    """One number per task, whether a config gives one or several."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def resolved(cfg):
    """The settings of a run under the names of the table."""
    method = build_method(cfg.model.method)
    found = dict(
        beta=numbers(method.beta),
        bound=method.bound,
        alpha=method.sparsity.alpha,
        warmup=method.sparsity.warmup_epochs,
        missing=len(cfg.train_cfg.protocol.get('missing') or ()),
        sizes=cfg.train_cfg.protocol.get('sizes'),
        epochs=cfg.train_cfg.epochs_per_task,
        steps=cfg.train_cfg.get('steps_per_task'),
        data_ratio=cfg.train_dataloader.dataset.get('data_ratio'),
        few_shot=cfg.train_dataloader.dataset.get('few_shot'),
        batch=cfg.train_dataloader.batch_size,
        lr=cfg.optim_wrapper.optimizer.lr,
        decay=cfg.optim_wrapper.optimizer.weight_decay,
        clip=(cfg.optim_wrapper.get('clip_grad') or {}).get('max_norm'),
        gpus_batch=(cfg.get('auto_scale_lr') or {}).get('base_batch_size'),
    )
    schedules = cfg.param_scheduler
    found['min_lr'] = schedules[0].get('eta_min') if schedules else found['lr']
    if isinstance(method, GSLoRAPlusPlus):
        found['prototypes'] = (
            numbers(method.prototype_weight),
            method.feature_pull_weight,
            method.prototype_bound,
            method.prototypes,
        )
    return method, found


def test_the_table_has_every_command():
    found = {path.relative_to(ROOT / 'configs').as_posix() for path in ROOT.glob('configs/**/*.py')}
    assert {path for path in found if path.endswith('_paper.py')} == set(THEIRS)


@pytest.mark.parametrize('path', THEIRS)
def test_resolved_settings(path):
    cfg = Config.fromfile(ROOT / 'configs' / path)
    method, found = resolved(cfg)
    expected = {'prototypes': None, 'missing': 0, **THEIRS[path]}
    assert type(method) is (GSLoRA if expected['prototypes'] is None else GSLoRAPlusPlus)
    assert {key: found.get(key) for key in expected} == expected
    # What all their scripts have in common.
    assert method.sparsity.mode == 'penalty' and method.sparsity.by == 'block'
    assert method.dropout and not method.teachers
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.model.get('tune') is None and method.tune == dict(type='LoRA')  # rank 8, alpha 1
    assert all(schedule.type == 'CosineAnnealingLR' for schedule in cfg.param_scheduler) or (
        'shapes' in path
    )
    if cfg.get('auto_scale_lr'):
        assert cfg.auto_scale_lr.enable  # their rate is that of 8 GPUs


@pytest.mark.parametrize(
    'path', [*THEIRS, *(f'baselines/gs_lora_{name}_forget.py' for name in BASELINES)]
)
def test_their_draw_and_order(path):
    """One image of a class is enough, and the images to forget take turns, not the classes."""
    loader = Config.fromfile(ROOT / 'configs' / path).train_dataloader
    assert loader.sampler == dict(type='PairedSampler', by_class=False)
    assert loader.dataset.type == 'ForgettingViews' and loader.dataset.min_images == 1


def test_beta_of_the_larger_single_steps():
    """80-60 and 80-70 have 0.2 to 0.4, as the header says how to give it."""
    cfg = Config.fromfile(ROOT / 'configs/gslora_coco_single_step_paper.py')
    cfg.merge_from_dict({'train_cfg.protocol.sizes': [60], 'model.method.beta': 0.4})
    method, found = resolved(cfg)
    assert method.beta == 0.4 and found['bound'] == 15


def test_few_shot_imagenet100_is_not_said_to_be_theirs():
    cfg = Config.fromfile(ROOT / 'configs/classification/gslora_pp_imagenet100_few_shot.py')
    method, found = resolved(cfg)
    assert type(method) is GSLoRAPlusPlus and (found['few_shot'], found['batch']) == (4, 8)
    assert found['beta'] == (0.2, 0.25, 0.25, 0.25) and found['prototypes'][0] == (0.05,)


@pytest.mark.parametrize('name', ['few_shot', 'single_step', 'missing', 'forget'])
def test_ours_on_faces_says_so(name):
    """What is not called paper is ours."""
    cfg = Config.fromfile(ROOT / f'configs/face/gslora_casia100_{name}.py')
    assert cfg.model.method.type == 'GuidedGSLoRA'
