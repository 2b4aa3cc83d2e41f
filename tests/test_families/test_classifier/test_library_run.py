"""From a plain file of torchvision over two requests and an audit to a plain file again."""

import copy
import json
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner, set_random_seed
from torchvision.models import VisionTransformer

from mmgslora.lora import apply_adapter

SIZES = dict(
    image_size=32,
    patch_size=8,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    mlp_dim=24,
    num_classes=10,
)
AUDIT = dict(
    seeds=[0],
    train_images=40,
    relearning_images=[4],
    relearning_steps=[0, 2],
    relearning_batch=4,
    relearning_measured_on=20,
)


def trained(dataset):
    """A network that nothing of mmgslora has touched."""
    set_random_seed(0)
    network = VisionTransformer(**SIZES)
    items = [dataset[i] for i in range(len(dataset))]
    images = torch.stack([item['inputs'] for item in items]).float()
    labels = torch.stack([item['data_samples'].gt_label.reshape(()) for item in items])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(350):
        rows = torch.arange(60 * step, 60 * step + 60) * 7 % len(images)
        optimizer.zero_grad()
        F.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    return network.eval()


def request(repo_root, folder):
    """The shipped config on a few generated images, without its model."""
    configs = repo_root / 'configs/classification'
    cfg = Config.fromfile(configs / 'gslora_vit-b16_folder_forget.py')
    shapes = Config.fromfile(configs / 'vit_shapes.py')
    made = dict(data_root=f'{folder}/data/', generate=dict(train=30, val=2, test=4))
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.num_workers = 0
        views = loader.dataset.get('data_ratio') and loader.dataset
        (views or loader).dataset = dict(shapes[f'{name}_dataloader'].dataset, **made)
    cfg.train_dataloader.batch_size = 16
    cfg.load_from = str(folder / 'plain.pth')
    cfg.audit = AUDIT
    cfg.log_level = 'WARNING'
    cfg.work_dir, cfg.experiment_name = str(folder / 'run'), f'{folder.name}_run'
    return cfg


def run(cfg):
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.train()
    cfg.dump(f'{cfg.work_dir}/run.py')
    return runner


@pytest.fixture(scope='module')
def finished(repo_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('torchvision')
    cfg = request(repo_root, folder)
    plain = trained(DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset.dataset)))
    torch.save(plain.state_dict(), folder / 'plain.pth')
    net = dict(type='torchvision.models.VisionTransformer', **SIZES)
    cfg.model.classifier = dict(type='LibraryClassifier', net=net)
    cfg.train_dataloader.dataset.data_ratio = 0.5
    tasks = dict(tasks=[['circle', 'square'], ['star']])
    cfg.train_cfg.update(protocol=tasks, epochs_per_task=6, seal=True)
    return run(cfg), plain, folder


def images_of(runner):
    dataset = runner.test_loop.dataloader.dataset
    return torch.stack([dataset[i]['inputs'] for i in range(len(dataset))]).float()


def test_record(finished):
    _, _, folder = finished
    record = json.loads((folder / 'run/forgetting.json').read_text())
    assert record['pretrained']['Acc'] > 30  # chance is 10
    first, second = record['tasks']
    before = [record['pretrained']['per_class'][name] for name in ('circle', 'square')]
    assert first['metrics']['Acc_f'] < sum(before) / 4 and first['metrics']['Acc_r'] > 25
    assert second['old'] == ['circle', 'square'] and 'Acc_o' in second['metrics']
    assert set(first['groups']) == {
        'encoder.layers.encoder_layer_0.mlp',
        'encoder.layers.encoder_layer_1.mlp',
    }


def test_the_result_is_a_file_of_the_plain_network(finished):
    runner, plain, folder = finished
    merged = torch.load(folder / 'run/merged/task_02.pth')
    network = VisionTransformer(**SIZES).eval()
    network.load_state_dict(merged['state_dict'], strict=True)
    images = images_of(runner)
    with torch.no_grad():
        ours, _ = runner.train_loop.model.eval()(images)
        assert torch.equal(network(images), ours)
        assert not torch.equal(plain(images), ours)


def test_adapters_fit_the_plain_network(finished):
    _, plain, folder = finished
    network = copy.deepcopy(plain)
    for task in (1, 2):
        apply_adapter(network, folder / f'run/adapters/task_0{task}')
        merged = torch.load(folder / f'run/merged/task_0{task}.pth')['state_dict']
        assert all(torch.equal(value, merged[key]) for key, value in network.state_dict().items())


def test_the_sealed_file_names_no_forgotten_class(finished):
    runner, _, folder = finished
    sealed = torch.load(folder / 'run/sealed/task_02.pth')
    network = VisionTransformer(**SIZES).eval()
    network.load_state_dict(sealed['state_dict'], strict=True)
    gone = [runner.train_loop.views.classes.index(name) for name in ('circle', 'square', 'star')]
    with torch.no_grad():
        assert not network(images_of(runner)).softmax(-1)[:, gone].any()


@pytest.fixture(scope='module')
def audit(repo_root):
    sys.path.insert(0, str(repo_root / 'tools'))
    try:
        import audit
    finally:
        sys.path.remove(str(repo_root / 'tools'))
    return audit


def audited(audit, folder, *options):
    audit.main([str(folder / 'run'), *options])
    return json.loads((folder / 'run/audit.json').read_text())['rows']


def test_audit(finished, audit):
    rows = audited(audit, finished[2], '--head-only')
    measures = {row['measure'] for row in rows}
    assert {'probe/block.0', 'probe/block.1', 'probe/embedding'} <= measures
    assert any(name.startswith('relearning/k4/step2') for name in measures)
    roles = {row['model'] for row in rows if row['measure'] == 'output/Acc_gone'}
    assert roles == {'original', 'unlearned', 'head only'}


def test_the_config_in_the_file_builds_the_model(finished):
    _, _, folder = finished
    merged = torch.load(folder / 'run/merged/task_02.pth')
    model = MODELS.build(Config.fromstring(merged['meta']['cfg'], '.py').model)
    assert model.load_state_dict(merged['state_dict'], strict=True)


def test_a_network_without_transformer_blocks(repo_root, tmp_path, audit):
    """All weights of a CNN by its name; the statistics of its batch norms stay."""
    plain = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    cfg = request(repo_root, tmp_path)
    cfg.model.update(
        classifier=dict(type='TorchvisionClassifier', name='shufflenet_v2_x0_5', num_classes=10),
        method=dict(cfg.model.method, sparsity=dict(mode='none')),
        tune=dict(type='Full'),
    )
    cfg.train_cfg.update(epochs_per_task=1)
    cfg.optim_wrapper.optimizer.lr = 1e-4
    runner = run(cfg)
    merged = torch.load(tmp_path / 'run/merged/task_01.pth')['state_dict']
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    network.load_state_dict(merged, strict=True)
    images = images_of(runner)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), runner.train_loop.model.eval()(images)[0])
    changed = {k for k, v in plain.state_dict().items() if not torch.equal(v, merged[k])}
    assert changed == {name for name, _ in plain.named_parameters()}
    apply_adapter(plain, tmp_path / 'run/adapters/task_01')
    assert all(torch.equal(value, merged[key]) for key, value in plain.state_dict().items())
    rows = audited(audit, tmp_path, '--measures', 'probe', 'relearning')
    assert {r['measure'] for r in rows if 'probe' in r['measure']} == {'probe/embedding'}
