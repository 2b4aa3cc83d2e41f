"""A tiny detector on a tiny data set: what whole runs of seconds are made of."""

import copy
import os
import runpy
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import set_random_seed
from spare import draw, spare_imports, spare_runs
from starter import Starter

import mmgslora.register  # noqa: F401
from mmgslora.datasets import write_shapes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session')
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope='session')
def tools(repo_root):
    """The ``main`` of each tool."""
    paths = {name: repo_root / f'tools/{name}.py' for name in ('train', 'test')}
    return {name: runpy.run_path(str(path))['main'] for name, path in paths.items()}


@pytest.fixture(scope='session')
def start(repo_root):
    """Runs a script in processes of its own that need not import anything, and without pictures."""
    starter = Starter(repo_root)
    yield starter
    starter.close()


@pytest.fixture(scope='session', autouse=True)
def _spare_runs():
    """``pictures`` brings them back; a process that nobody has prepared spares nothing."""
    with pytest.MonkeyPatch.context() as patch:
        spare_runs(patch.setattr)
        yield


@pytest.fixture(scope='session')
def pictures():
    """A context for runs whose pictures are looked at."""

    @contextmanager
    def pictures():
        with pytest.MonkeyPatch.context() as patch:
            draw(patch.setattr)
            yield

    return pictures


@pytest.fixture(autouse=True)
def _fresh_message_hub(request):
    """Every test starts seeded, without a class partition and in MMDetection's scope."""
    MessageHub.get_instance(request.node.name)
    DefaultScope.get_instance(request.node.name, scope_name='mmdet')
    set_random_seed(0)


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(root, train=40, val=12, test=4, size=64)
    return root


@pytest.fixture(scope='session')
def tiny_cfg(shapes_root) -> Config:
    """configs/gslora_shapes_forget.py, shrunk until two tasks take seconds."""
    cfg = Config.fromfile(ROOT / 'configs/gslora_shapes_forget.py')
    shrink_detector(cfg.model.detector)
    for loader in (cfg.train_dataloader.dataset, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{shapes_root}/'
        loader.dataset.generate = dict(train=40, val=12, test=4, size=64)
    # The few images that tiny_checkpoint knows by heart serve as both.
    for key in ('ann_file', 'data_prefix'):
        cfg.test_dataloader.dataset[key] = cfg.val_dataloader.dataset[key]
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{shapes_root}/annotations/val.json'
    cfg.train_dataloader.batch_size = 8
    # Few images, in few steps; drawn once, so that several processes equal one.
    cfg.train_dataloader.dataset.update(data_ratio=0.4, min_images=1, redraw=False)
    cfg.train_cfg.protocol = dict(tasks=[['circle', 'square'], ['star']], missing=[])
    cfg.train_cfg.update(epochs_per_task=2, steps_per_task=None)
    cfg.param_scheduler[0].end = 2
    cfg.log_level = 'WARNING'
    return cfg


def shrink_detector(detector) -> None:
    """Narrow the tiny Deformable DETR to 16 channels and one layer of each kind."""
    detector.num_queries = 12
    detector.backbone.base_channels = 8
    detector.neck.update(in_channels=[16, 32, 64], out_channels=16)
    detector.neck.norm_cfg.num_groups = 4
    for coder in (detector.encoder, detector.decoder):
        for part in coder.layer_cfg.values():
            part.embed_dims = 16
        coder.layer_cfg.ffn_cfg.feedforward_channels = 32
    detector.encoder.num_layers = 1
    detector.decoder.num_layers = 2
    detector.positional_encoding.num_feats = 8
    detector.bbox_head.embed_dims = 16


@pytest.fixture(scope='session')
def tiny_checkpoint(tiny_cfg, tmp_path_factory) -> Path:
    """The plain tiny detector that knows the validation images by heart: APs far from zero."""
    DefaultScope.get_instance('tiny_checkpoint', scope_name='mmdet')
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:  # one for all processes of this session
        folder = folder.parent
    path = folder / 'plain.pth'
    if not path.exists():
        draft = tmp_path_factory.mktemp('checkpoint') / path.name
        torch.save(dict(state_dict=_by_heart(tiny_cfg), meta={}), draft)
        draft.replace(path)
    return path


def _by_heart(tiny_cfg) -> dict:
    set_random_seed(1)
    detector = MODELS.build(copy.deepcopy(tiny_cfg.model.detector))
    detector.init_weights()
    detector.train()
    known = copy.deepcopy(tiny_cfg.train_dataloader.dataset.dataset)
    known.update(ann_file=tiny_cfg.val_dataloader.dataset.ann_file)
    known.update(data_prefix=tiny_cfg.val_dataloader.dataset.data_prefix)
    known.pipeline = [step for step in known.pipeline if step.type != 'RandomFlip']
    dataset = DATASETS.build(known)
    items = [dataset[i] for i in range(len(dataset))]
    steps = 200
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for step in range(steps):
        batch = [copy.deepcopy(items[(8 * step + i) % len(items)]) for i in range(8)]
        data = detector.data_preprocessor(pseudo_collate(batch), True)
        loss = sum(detector.loss(data['inputs'], data['data_samples']).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return detector.state_dict()


@pytest.fixture
def run_cfg(tiny_cfg, tiny_checkpoint, tmp_path) -> Config:
    """A config ready for Runner.from_cfg, with a work_dir of its own."""
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from = str(tiny_checkpoint)
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = tmp_path.name
    return cfg


def pytest_collection_finish() -> None:
    spare_imports()
