"""The papers' two 4 x 20 configs for images, end to end on a hundred generated class folders."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

FAMILIES = {
    'classification/gslora_imagenet100_forget.py': 'imagenet100',
    'face/gslora_casia100_forget.py': 'casia_face100',
    'face/gslora_casia100_missing.py': 'casia_face100',
}
SIDE = 48


def write_folders(root):
    rng = np.random.default_rng(0)
    for split, count in (('train', 2), ('test', 1)):
        for number in range(100):
            folder = root / split / f'n{number:08d}'
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                cv2.imwrite(str(folder / f'{i}.png'), pixels)
    names = [f'n{number:08d}' for number in range(1000)]
    (root / 'imagenet_folder_names.txt').write_text('\n'.join(names))


@pytest.fixture(params=FAMILIES)
def cfg(request, repo_root, tmp_path, monkeypatch):
    """A shipped config; what is overridden are paths, sizes of model and images, and epochs."""
    monkeypatch.chdir(tmp_path)  # the data paths stay as they are
    write_folders(tmp_path / 'data' / FAMILIES[request.param])
    cfg = Config.fromfile(repo_root / 'configs' / request.param)
    plain = cfg.model.classifier
    sizes = dict(num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24)
    if plain.backbone.type == 'FaceTransformer':
        plain.backbone.update(image_size=SIDE, head_dim=8, **sizes)
        plain.head.embed_dims = 16
    else:
        plain.backbone = dict(type='VisionTransformer', image_size=SIDE, patch_size=16, **sizes)
        # Without published weights it is a head of random rows, as many as there are folders.
        plain.head = dict(type='LinearHead', embed_dims=16, num_classes=100)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = loader.dataset.get('dataset', loader.dataset)
        for step in dataset.transforms:
            if step.type in ('Resize', 'CenterCrop'):
                step.size = (SIDE, SIDE)
        loader.num_workers = 0
    cfg.train_dataloader.dataset.data_ratio = 1.0
    cfg.train_cfg.epochs_per_task = 1
    cfg.param_scheduler[0].T_max = 1
    cfg.log_level = 'WARNING'
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = tmp_path.name
    DefaultScope.get_instance(tmp_path.name, scope_name='mmengine')
    torch.manual_seed(0)
    state = MODELS.build(copy.deepcopy(plain)).state_dict()
    cfg.load_from = str(tmp_path / 'original.pth')
    torch.save(dict(state_dict=state, meta={}), cfg.load_from)
    return cfg


def test_four_tasks_of_twenty(cfg):
    missing = cfg.train_cfg.protocol.get('missing', [])
    order = cfg.train_cfg.protocol.order
    Runner.from_cfg(cfg).train()
    tasks = json.loads(Path(cfg.work_dir, 'forgetting.json').read_text())['tasks']
    assert [len(task['forget']) for task in tasks] == [20] * 4
    # From the end of the authors' list; its first twenty stay.
    for number, task in enumerate(tasks, 1):
        expected = order[100 - 20 * number : 120 - 20 * number]
        assert sorted(task['forget']) == sorted(f'n{i:08d}' for i in expected)
        assert len(task['old']) == 20 * (number - 1)
        assert sorted(task['missing']) == sorted(f'n{i:08d}' for i in missing)
        assert len(task['retain']) == 100 - 20 * number - len(missing)
        assert task['train_images']['forget'] == 40
        assert task['train_images']['retain'] == 2 * len(task['retain'])
        assert ('Acc_m' in task['metrics']) == bool(missing)
    stay = {f'n{i:08d}' for i in order[:20]} - {f'n{i:08d}' for i in missing}
    assert set(tasks[-1]['retain']) == stay
