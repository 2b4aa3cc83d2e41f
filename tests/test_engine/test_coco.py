"""The shipped COCO configs, on generated images with the 80 categories of COCO."""

import copy
import importlib.util
import json
import shutil
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mmgslora.datasets import Protocol
from mmgslora.errors import ForgettingError
from mmgslora.lora import trainable_share

NAMES = CocoDataset.METAINFO['classes']
IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
NAME_OF = dict(zip(IDS, NAMES))
SIDE = 96
# Rank 8 times the widths 256 + 1024 of both linears in the FFN of a layer.
PER_LAYER = 2 * 8 * (256 + 1024)


def write_coco(root, train=6, val=2):
    """Images of rectangles in COCO's own layout; two in a row hold each category once."""
    rng = np.random.default_rng(0)
    for split, count in (('train2017', train), ('val2017', val)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            pixels = np.full((SIDE, SIDE, 3), 127, np.uint8)
            for category in IDS[number % 2 :: 2]:
                width, height = (int(v) for v in rng.integers(8, 20, 2))
                x, y = (int(rng.integers(0, SIDE - size)) for size in (width, height))
                pixels[y : y + height, x : x + width] = rng.integers(0, 256, 3)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number + 1,
                        category_id=category,
                        bbox=[x, y, width, height],
                        area=width * height,
                        iscrowd=0,
                    )
                )
            name = f'{number + 1:012}.jpg'
            cv2.imwrite(str(root / split / name), pixels)
            images.append(dict(id=number + 1, file_name=name, width=SIDE, height=SIDE))
        categories = [dict(id=i, name=name) for i, name in NAME_OF.items()]
        path = root / f'annotations/instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )


def shrink_images(settings):
    """Set every size in a pipeline to one that suits the generated images."""
    if isinstance(settings, list):
        for item in settings:
            shrink_images(item)
    elif isinstance(settings, dict):
        small = dict(scale=(SIDE, SIDE), scales=[(SIDE, SIDE)], crop_size=(64, SIDE))
        settings.update({key: value for key, value in small.items() if key in settings})
        shrink_images(list(settings.values()))


def shrink_detector(detector):
    """A sixteenth of the backbone, 2 + 2 layers of 6 + 6, 50 queries of 300."""
    detector.backbone.base_channels = 16
    detector.neck.in_channels = [128, 256, 512]
    detector.encoder.num_layers = detector.decoder.num_layers = 2
    detector.num_queries = 50


def save_random_detector(cfg, path):
    torch.manual_seed(1)
    detector = copy.deepcopy(cfg.model.detector)
    detector.backbone.init_cfg = None
    model = MODELS.build(detector)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


@pytest.fixture(scope='module')
def finished(repo_root, tmp_path_factory):
    """A finished run of configs/gslora_coco_forget.py: its loaded model and its work_dir."""
    root = tmp_path_factory.mktemp('coco')
    DefaultScope.get_instance(root.name, scope_name='mmdet')
    write_coco(root)
    cfg = Config.fromfile(repo_root / 'configs/gslora_coco_forget.py')
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    for loader in loaders:
        loader.update(num_workers=0, persistent_workers=False)
    for dataset in (cfg.train_dataloader.dataset.dataset, *(x.dataset for x in loaders[1:])):
        dataset.data_root = f'{root}/'
        shrink_images(dataset.pipeline)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{root}/annotations/instances_val2017.json'
    shrink_detector(cfg.model.detector)
    cfg.train_cfg.update(epochs_per_task=1, steps_per_task=None)
    cfg.load_from = str(root / 'random.pth')
    save_random_detector(cfg, cfg.load_from)
    cfg.work_dir = str(root / 'run')
    cfg.experiment_name = root.name
    cfg.log_level = 'WARNING'

    def refuse(*args, **kwargs):
        raise AssertionError(f'The run asked the network for {args}.')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, 'create_connection', refuse)
        runner = Runner.from_cfg(cfg)
        runner.train()
    yield runner
    shutil.rmtree(root)  # seven merged detectors of 30 MB
    # MMEngine keeps one visualizer of a name, and this one writes into the folder that is gone.
    DetLocalVisualizer._instance_dict.clear()


def test_seven_tasks_of_ten(finished):
    record = json.loads(Path(finished.work_dir, 'forgetting.json').read_text())
    assert len(record['tasks']) == 7
    assert record['tasks'][0]['forget'] == [
        'microwave', 'skateboard', 'umbrella', 'banana', 'sports ball',
        'book', 'apple', 'couch', 'horse', 'keyboard',
    ]  # fmt: skip
    assert record['tasks'][6]['forget'][:3] == ['traffic light', 'surfboard', 'vase']
    for number, task in enumerate(record['tasks'], 1):
        assert task['task'] == number
        assert len(task['forget']) == 10
        assert len(task['old']) == 10 * (number - 1)
        assert len(task['retain']) == 80 - 10 * number
        assert {'AP_f', 'AP_r', 'Drop', 'AR_f@0.05', 'paper/AP_f'} <= task['metrics'].keys()
        assert ('AP_o' in task['metrics']) == (number > 1)
        assert task['per_class'].keys() == set(NAMES)
        assert task['trainable_params'] == 4 * 2 * PER_LAYER  # rank 16
        assert 1 <= task['steps'] <= 3
    assert set(record['tasks'][6]['retain']) == {NAME_OF[i] for i in (
        74, 64, 65, 5, 79, 59, 36, 88, 9, 49
    )}  # fmt: skip


def test_last_merged_file_is_the_model(finished):
    merged = torch.load(Path(finished.work_dir, 'merged/task_07.pth'))['state_dict']
    model = finished.model.detector.state_dict()
    assert merged.keys() == {key for key in model if 'lora_' not in key}
    assert all(torch.equal(value, model[key]) for key, value in merged.items())
    assert not any(key.startswith('detector.') for key in merged)


def test_trainable_share(repo_root):
    """Of the whole detector, with the authors' rank 8 and with ours, 16."""
    for name, rank in (('forget', 16), ('forget_paper', 8)):
        cfg = Config.fromfile(repo_root / f'configs/gslora_coco_{name}.py')
        cfg.model.detector.backbone.init_cfg = None
        trainable, total = trainable_share(MODELS.build(cfg.model).detector)
        assert trainable == 12 * PER_LAYER * rank // 8 == 30_720 * rank
    assert total == 40_118_934
    assert round(100 * trainable / 39_847_265, 3) == 0.617
    # The authors count neither the stem and first stage, frozen from the start, nor batch-norm;
    # their neck has biases, and their head 11 more classes.
    assert total - 39_847_265 == 222_400 + 53_120 - 4 * 256 - 11 * (256 + 1)


@pytest.fixture
def load(repo_root):
    """The config that tools/train.py makes of a command line."""
    spec = importlib.util.spec_from_file_location('train_tool', repo_root / 'tools/train.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def load(name, *options):
        config = str(repo_root / f'configs/{name}.py')
        extra = ['--cfg-options', *options] if options else []
        args = tool.parse_args([config, *extra])
        cfg = tool.load_config(args.config, args.work_dir, args.cfg_options)
        tool.apply_flags(cfg, args)
        return cfg

    return load


def protocol_of(cfg):
    return Protocol(NAMES, category_ids=NAME_OF, **cfg.train_cfg.protocol)


@pytest.mark.parametrize(
    ('option', 'tasks'),
    [
        ('tasks=[[person]]', (('person',),)),
        ('tasks=[[1],[10,cat]]', (('person',), ('traffic light', 'cat'))),
        ('sizes=[1]', (('keyboard',),)),
        ('file={}/configs/_base_/protocols/example.yaml', (('person',), ('traffic light', 'cat'))),
    ],
)
@pytest.mark.parametrize('name', ['gslora_coco_forget', 'gslora_coco_single_step'])
def test_one_option_is_a_request(load, repo_root, name, option, tasks):
    cfg = load(name, 'train_cfg.protocol.' + option.format(repo_root))
    assert protocol_of(cfg).tasks == tasks


def test_unknown_category_id(load):
    with pytest.raises(ForgettingError, match='Category id 12 in task 1 .* 13 .stop sign'):
        protocol_of(load('gslora_coco_forget', 'train_cfg.protocol.tasks=[[12]]'))


@pytest.mark.parametrize('size', [1, 5, 10, 20, 30, 40, 50, 60, 70])
def test_single_step(load, size):
    (task,) = protocol_of(
        load('gslora_coco_single_step', f'train_cfg.protocol.sizes=[{size}]')
    ).tasks
    whole = protocol_of(load('gslora_coco_forget'))
    assert task[::-1] == tuple(name for t in whole.tasks for name in t[::-1])[:size]


def test_configs_differ_in_method_and_learning_rate_rule(load):
    """The paper's config is ours with the authors' settings and schedule on top."""
    ours, theirs = load('gslora_coco_forget'), load('gslora_coco_forget_paper')
    differ = {key for key in ours if ours[key] != theirs.get(key)}
    schedule = {'train_cfg', 'optim_wrapper', 'param_scheduler', 'train_dataloader'}
    assert differ == {'model', 'auto_scale_lr', 'work_dir', *schedule}
    assert theirs.train_dataloader.sampler.pop('by_class') is False
    images = [x.train_dataloader.dataset.pop('min_images') for x in (ours, theirs)]
    assert images == [30, 1]
    redraw = [x.train_dataloader.dataset.pop('redraw') for x in (ours, theirs)]
    assert redraw == ['forget', True]
    batches = ours.train_dataloader.pop('batch_size'), theirs.train_dataloader.pop('batch_size')
    assert batches == (16, 4) and ours.train_dataloader == theirs.train_dataloader
    assert ours.train_cfg.protocol == theirs.train_cfg.protocol
    assert ours.train_cfg.steps_per_task and theirs.train_cfg.steps_per_task is None
    assert ours.model.method == dict(type='GuidedGSLoRA', distill_weight=14)
    assert theirs.model.pop('method').type == 'GSLoRA'
    ours.model.pop('method')
    assert ours.model == theirs.model
    assert theirs.auto_scale_lr == dict(enable=True, base_batch_size=32)
    assert theirs.optim_wrapper == dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=3e-4, weight_decay=1e-4),
        clip_grad=dict(max_norm=0.1, norm_type=2),
    )
    assert theirs.param_scheduler == []
    assert theirs.train_cfg.epochs_per_task == 30
    assert theirs.train_dataloader.dataset.data_ratio == 0.1
