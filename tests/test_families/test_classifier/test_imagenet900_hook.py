"""The ImageNet900 check: a hand-counted accuracy, its place in the record, and what is refused."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torchvision.models import WeightsEnum

from mmgslora.errors import ForgettingError
from mmgslora.families.classifier import ImageNet900Hook
from mmgslora.models import ImageNetHead, TorchvisionClassifier

ALL = ['n01', 'n02', 'n05', 'n10', 'n20']
COLOURS = dict(red=(1, 0, 0), green=(0, 1, 0), yellow=(1, 1, 0), black=(0, 0, 0))
# Row by row what makes an embedding (r, g, b) each class; the model tells n02 and n05 apart.
ROWS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [-1, -1, -1]])
BIAS = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.5])
TO_TENSOR = [dict(type='ToImage'), dict(type='ToDtype', dtype='float32', scale=True)]


@pytest.fixture(autouse=True)
def published(monkeypatch):
    state = {'heads.head.weight': ROWS, 'heads.head.bias': BIAS}
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda entry, **_: state)
    return state


def write_images(folder, images):
    for name, colours in images.items():
        (folder / name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            rgb = np.full((8, 8, 3), COLOURS[colour]) * 255
            cv2.imwrite(str(folder / name / f'{number}.png'), rgb[..., ::-1].astype(np.uint8))


def hook_of(root, **options):
    dataset = dict(type='FolderDataset', data_root=str(root), transforms=TO_TENSOR, test_mode=True)
    return ImageNet900Hook(dict(batch_size=2, num_workers=0, dataset=dataset), **options)


class Log(list):
    info = list.append


def runner_of(head):
    """As far as the hook reads it: the embedding of an image is its mean colour."""
    plain = nn.Module()
    plain.head = head
    plain.class_layer = head
    plain.embed = lambda images: torch.stack(images).mean((2, 3))
    model = SimpleNamespace(
        plain_model=plain,
        classifier_weight=head.weight,
        data_preprocessor=lambda batch, training: batch,
    )
    return SimpleNamespace(
        train_loop=SimpleNamespace(model=model),
        build_dataloader=Runner.build_dataloader,
        logger=Log(),
    )


def test_by_hand(tmp_path):
    """Right are red n01, both yellow n10 and black n20; green n01 is called n02, red n10 n01."""
    images = dict(n01=['red', 'green'], n10=['yellow', 'red', 'yellow'], n20=['black'])
    write_images(tmp_path, images)
    hook, runner = hook_of(tmp_path), runner_of(ImageNetHead(['n05', 'n02'], ALL))
    hook.before_train(runner)
    metrics = dict(Acc=1.0)
    hook.after_val_epoch(runner, metrics=metrics)
    assert metrics == {'Acc': 1.0, 'ImageNet900/top1': pytest.approx(100 * 4 / 6)}


def test_without_the_folder(tmp_path):
    runner, metrics = runner_of(ImageNetHead(['n02'], ALL)), {}
    hook = hook_of(tmp_path / 'no')
    hook.before_train(runner)
    hook.after_val_epoch(runner, metrics=metrics)
    (line,) = runner.logger
    assert "no', does not exist; the check is left out" in line and not metrics
    with pytest.raises(ForgettingError, match="no', does not exist; put the images there"):
        hook_of(tmp_path / 'no', required=True).before_train(runner)


@pytest.mark.parametrize(
    ('classes', 'words'),
    [
        (['n01', 'n02'], "'n02' of the ImageNet900 check is one of the 2 classes of the model"),
        (['n01', 'n99'], "'n99' is none of the 5 of the head"),
    ],
)
def test_other_classes_only(tmp_path, classes, words):
    write_images(tmp_path, {name: ['red'] for name in classes})
    with pytest.raises(ForgettingError, match=words):
        hook_of(tmp_path).before_train(runner_of(ImageNetHead(['n05', 'n02'], ALL)))


def test_a_loader_of_the_config_with_its_sampler(tmp_path):
    """Every image once, whatever the sampler was."""
    write_images(tmp_path, dict(n01=['red', 'green', 'red']))
    hook, runner = hook_of(tmp_path), runner_of(ImageNetHead(['n05', 'n02'], ALL))
    hook.dataloader['sampler'] = dict(type='InfiniteSampler')
    hook.before_train(runner)
    metrics = {}
    hook.after_test_epoch(runner, metrics=metrics)
    assert metrics == {'ImageNet900/top1': pytest.approx(100 * 2 / 3)}


def test_another_head(tmp_path):
    write_images(tmp_path, dict(n01=['red']))
    network = TorchvisionClassifier('resnet18', num_classes=2)
    other = SimpleNamespace(train_loop=SimpleNamespace(model=SimpleNamespace(plain_model=network)))
    with pytest.raises(ForgettingError, match='The head is a Linear; .* needs an ImageNetHead'):
        hook_of(tmp_path).before_train(other)
    with pytest.raises(ForgettingError, match='The head is a Linear; .* needs an ImageNetHead'):
        hook_of(tmp_path).before_train(runner_of(nn.Linear(3, 2)))


def test_before_training_and_after_each_task(repo_root, tmp_path, monkeypatch, published):
    """The shipped config on a few images: the accuracy stands in the record three times."""
    names = [f'n{i:02d}' for i in range(8)]
    published['heads.head.weight'], published['heads.head.bias'] = (
        torch.randn(8, 16),
        torch.zeros(8),
    )
    data, other = tmp_path / 'data/imagenet100', tmp_path / 'data/imagenet_val_split/nonexist'
    for split in ('train', 'test'):
        write_images(data / split, {name: list(COLOURS) for name in names[:4]})
    write_images(other, {name: list(COLOURS) for name in names[4:]})
    (data / 'imagenet_folder_names.txt').write_text('\n'.join(names))
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(repo_root / 'configs/classification/gslora_imagenet100_forget.py')
    sizes = dict(num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24)
    cfg.model.classifier.backbone = dict(
        type='VisionTransformer', image_size=8, patch_size=4, **sizes
    )
    check = cfg.custom_hooks[-1].dataloader
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader, check):
        dataset = loader.dataset.get('dataset', loader.dataset)
        dataset.transforms = TO_TENSOR
        loader.num_workers = 0
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_dataloader.dataset.data_ratio = 1.0
    cfg.train_cfg.update(protocol=dict(tasks=[['n00'], ['n02']]), epochs_per_task=2)
    cfg.param_scheduler, cfg.log_level = [], 'WARNING'
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'run'), tmp_path.name
    DefaultScope.get_instance(tmp_path.name, scope_name='mmengine')
    plain = MODELS.build(copy.deepcopy(cfg.model.classifier))
    cfg.load_from = str(tmp_path / 'original.pth')
    torch.save(dict(state_dict=plain.state_dict(), meta={}), cfg.load_from)
    Runner.from_cfg(cfg).train()

    def expected(weights):
        plain.load_state_dict(torch.load(weights)['state_dict'])
        pixels = torch.tensor(list(COLOURS.values())).float()[:, :, None, None].expand(-1, -1, 8, 8)
        with torch.no_grad():
            logits = plain.eval().embed(pixels) @ published['heads.head.weight'].T
        # All four colours are in each of the four class folders.
        return 100 * sum((logits.argmax(1) == row).sum().item() for row in range(4, 8)) / 16

    record = json.loads(Path(cfg.work_dir, 'forgetting.json').read_text())
    assert record['pretrained']['ImageNet900/top1'] == expected(cfg.load_from)
    for number, task in enumerate(record['tasks'], 1):
        found = task['metrics']['ImageNet900/top1']
        assert found == expected(Path(cfg.work_dir, f'merged/task_{number:02d}.pth'))
