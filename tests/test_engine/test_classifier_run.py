"""Whole tiny runs of the second and third family: the same loop, hooks, files and record."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from torchvision.datasets import ImageFolder

from mmgslora.errors import ForgettingError
from mmgslora.lora import apply_adapter

NAMES = {
    'classification': ('vit_shapes.py', 'gslora_classification_forget.py'),
    'face': ('face-transformer_generated.py', 'gslora_face_forget.py'),
}


def small(cfg, data_root):
    """The shipped config on little data, with a little model."""
    plain = cfg.model.get('classifier', cfg.model)
    plain.backbone.update(num_layers=2, hidden_dim=16, num_heads=2, mlp_dim=24)
    if 'head_dim' in plain.backbone:
        plain.backbone.head_dim = 8
    plain.head.embed_dims = 16
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = loader.dataset.get('dataset', loader.dataset)
        dataset.update(data_root=f'{data_root}/', generate=dict(train=16, val=2, test=4))
    cfg.log_level = 'WARNING'
    return cfg


@pytest.fixture(scope='module', params=NAMES)
def finished(request, repo_root, tmp_path_factory, pictures):
    """A pre-trained tiny model that forgot two classes and then one more."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    plain, forget = (
        small(Config.fromfile(repo_root / 'configs' / family / name), folder / 'data')
        for name in NAMES[family]
    )
    plain.train_cfg.update(max_epochs=12, val_interval=12)
    plain.train_dataloader.batch_size = 16
    plain.param_scheduler = []
    plain.optim_wrapper.optimizer.lr = 3e-3
    plain.work_dir, plain.experiment_name = str(folder / 'plain'), f'{family}_plain'
    Runner.from_cfg(plain).train()

    names = sorted(p.name for p in (folder / 'data' / 'train').iterdir())
    forget.load_from = str(folder / 'plain' / 'epoch_12.pth')
    forget.train_cfg.update(
        epochs_per_task=2, protocol=dict(_delete_=True, tasks=[names[:2], names[2:3]])
    )
    forget.train_cfg.seal = True
    forget.train_cfg.protocol = dict(tasks=[names[:2], names[2:3]], missing=names[-1:])
    forget.train_dataloader.batch_size = 16
    forget.train_dataloader.dataset.update(few_shot=3)
    forget.param_scheduler = []
    forget.work_dir, forget.experiment_name = str(folder / 'forget'), f'{family}_forget'
    runner = Runner.from_cfg(copy.deepcopy(forget))
    with pictures():
        runner.train()
    return runner, forget, folder, names


def test_record(finished):
    runner, cfg, folder, names = finished
    record = json.loads((folder / 'forget' / 'forgetting.json').read_text())
    assert record['pretrained']['Acc'] > 2 * 100 / len(names)  # far better than chance
    first, second = record['tasks']
    assert first['forget'] == names[:2] and second['old'] == names[:2]
    assert first['missing'] == names[-1:]
    assert {'Acc_f', 'Acc_r', 'Acc_m', 'Drop', 'H'} <= set(first['metrics'])
    assert 'Acc_o' in second['metrics']
    shots = first['few_shot']
    assert shots['images_per_class'] == 3
    assert {name: len(ids) for name, ids in shots['forget'].items()} == dict.fromkeys(names[:2], 3)
    assert set(shots['retain']) == set(names[2:-1])
    assert first['train_images'] == dict(forget=6, retain=3 * (len(names) - 3))
    assert len(first['groups']) == 2  # one per block
    with_faces = 'verification/retain_AUC' in first['metrics']
    assert with_faces == ('face' in cfg.experiment_name)


def test_files(finished):
    _, _, folder, _ = finished
    for name in ('forgetting.png', 'before_after.png', 'adapters/task_02/adapter_config.json'):
        assert (folder / 'forget' / name).stat().st_size > 0


def test_merged_checkpoint_is_a_plain_model_with_the_recorded_accuracy(finished):
    """Loaded without anything of forgetting and counted by hand over torchvision's ImageFolder."""
    runner, cfg, folder, names = finished
    merged = folder / 'forget' / 'merged' / 'task_02.pth'
    checkpoint = torch.load(merged)
    assert not any('lora' in key for key in checkpoint['state_dict'])
    plain_cfg = Config.fromstring(checkpoint['meta']['cfg'], '.py')
    model = MODELS.build(copy.deepcopy(plain_cfg.model))
    load_checkpoint(model, str(merged), strict=True)
    model.eval()
    dataset = runner.test_loop.dataloader.dataset
    hits = {name: [] for name in names}
    folder_data = ImageFolder(str(folder / 'data' / 'test'))
    for index in range(len(folder_data)):
        item = dataset[index]
        with torch.no_grad():
            logits, _ = model([item['inputs']])
        label = folder_data.samples[index][1]
        hits[names[label]].append(int(logits.argmax()) == label)
    record = json.loads((folder / 'forget' / 'forgetting.json').read_text())
    for name, value in record['tasks'][1]['per_class'].items():
        assert value == pytest.approx(100 * np.mean(hits[name]))


def test_original_and_adapters_rebuild_every_merged_model(finished):
    _, cfg, folder, _ = finished
    plain = MODELS.build(copy.deepcopy(cfg.model.classifier))
    plain.load_state_dict(torch.load(cfg.load_from)['state_dict'])
    for task in (1, 2):
        apply_adapter(plain, folder / f'forget/adapters/task_0{task}')
        merged = torch.load(folder / f'forget/merged/task_0{task}.pth')['state_dict']
        state = plain.state_dict()
        assert merged.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in merged.items())


def test_sealed_file(finished):
    """A plain classifier that names no forgotten class; the metrics beside the others say so."""
    _, cfg, folder, names = finished
    record = json.loads((folder / 'forget' / 'forgetting.json').read_text())
    metrics = record['tasks'][1]['metrics']
    assert metrics['sealed/Acc_f'] == metrics['sealed/Acc_o'] == 0
    assert metrics['sealed/Acc_r'] >= metrics['Acc_r']  # one name less to take them for
    assert record['seal'] and record['split'] == 'test'
    model = MODELS.build(copy.deepcopy(cfg.model.classifier))
    load_checkpoint(model, str(folder / 'forget/sealed/task_02.pth'), strict=True)
    images = torch.randn(20, 3, *2 * [model.backbone.image_size])
    with torch.no_grad():
        scores = model.eval()(images)[0].softmax(-1)
    assert not scores[:, :3].any() and scores[:, 3:].any()


def test_resumed_after_the_first_task(finished, tmp_path):
    """Stopped after three of four epochs and resumed: the same weights, bit for bit."""
    whole, cfg, _, _ = finished
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f'{cfg.experiment_name}_parts'
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    loop = runner.train_loop
    run_epoch = loop.run_epoch

    def run_three():
        run_epoch()
        loop.stop_training = loop.epoch == 3

    loop.run_epoch = run_three
    runner.train()
    cfg.resume, cfg.load_from = True, None
    cfg.experiment_name += '_again'
    again = Runner.from_cfg(cfg)
    again.train()
    theirs = again.model.state_dict()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(theirs[key], value), key


def test_checkpoint_of_other_people(finished, tmp_path):
    _, cfg, folder, names = finished
    checkpoint = torch.load(cfg.load_from)
    checkpoint['meta']['dataset_meta']['classes'] = (*names[1:], names[0])
    torch.save(checkpoint, tmp_path / 'other.pth')
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.work_dir = str(tmp_path / 'other.pth'), str(tmp_path / 'run')
    cfg.experiment_name += '_other'
    with pytest.raises(ForgettingError, match='checkpoint to forget from'):
        Runner.from_cfg(cfg).train()
    assert not Path(tmp_path, 'run', 'adapters').exists()
