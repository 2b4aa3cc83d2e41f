"""Two processes against one with the joint batch; accumulation; what piles up over tasks."""

import copy
import gc
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from safetensors.torch import load_file

from mmgslora.datasets import Protocol
from mmgslora.methods import sparsity as group_sparsity


@HOOKS.register_module()
class TraceHook(Hook):
    """Writes the losses of all ranks, and fails where ranks differ in any parameter."""

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.losses = {}

    def before_run(self, runner) -> None:
        if not is_main_process():  # what other ranks write must not hide behind rank 0's files
            runner._work_dir = str(Path(runner.work_dir, 'other_rank'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for name, value in outputs.items():
            mean = value.detach().clone()
            all_reduce(mean, op='mean')
            self.losses.setdefault(name, []).append(mean.item())

    def after_forget_task(self, runner, metrics: dict) -> None:
        digest = hashlib.sha1()
        for value in runner.train_loop.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        found = all_gather_object(digest.hexdigest())
        assert len(set(found)) == 1, 'parameters differ between ranks'

    def after_train(self, runner) -> None:
        if is_main_process():
            Path(runner.work_dir, 'losses.json').write_text(json.dumps(self.losses))


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope='module')
def launch(repo_root, tmp_path_factory):
    """tools/dist_train.sh as a user calls it, in two processes on the CPU."""
    folder = tmp_path_factory.mktemp('launch')  # MMEngine leaves .dist_test/ where it runs

    def launch(*arguments):
        environment = os.environ | dict(
            PYTHONPATH=f'{repo_root}{os.pathsep}{repo_root / "tests"}',
            PYTHON=sys.executable,
            PORT=free_port(),
            OMP_NUM_THREADS='1',
            OMP_WAIT_POLICY='PASSIVE',
            CUDA_VISIBLE_DEVICES='',
        )
        process = subprocess.Popen(
            [repo_root / 'tools/dist_train.sh', *arguments],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=400)
        finally:
            if process.poll() is None:  # after a timeout
                os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its processes
        assert process.returncode == 0, errors[-4000:]

    return launch


@pytest.fixture(scope='module')
def both_ranks(start, tmp_path_factory):
    """The same without the start: a tool in two processes that torchrun would start."""
    folder = tmp_path_factory.mktemp('both_ranks')

    def both_ranks(*arguments, tool='train'):
        common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), CUDA_VISIBLE_DEVICES='')
        common.update(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2')
        ranks = [dict(common, RANK=rank, LOCAL_RANK=rank) for rank in '01']
        command = (start.root / f'tools/{tool}.py', *arguments, '--launcher=pytorch')
        result = start(*command, environments=ranks, cwd=folder)
        assert result.returncode == 0, result.stderr[-4000:]

    return both_ranks


def config(tiny_cfg, tiny_checkpoint, work_dir):
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from, cfg.work_dir = str(tiny_checkpoint), str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.train_dataloader.dataset.dataset.pipeline[2].prob = 0.0  # ranks flip for themselves
    cfg.custom_imports = dict(imports=['mmgslora.register', 'test_engine.test_distributed'])
    cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type != 'ImageHook']
    cfg.custom_hooks.append(dict(type='TraceHook'))
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.test_evaluator.outfile_prefix = f'{work_dir}_detections'
    return cfg


@pytest.fixture(scope='module')
def runs(tiny_cfg, tiny_checkpoint, tmp_path_factory, launch, both_ranks):
    """Configs of the finished runs: one process with batches of 8, two with batches of 4."""
    root, made = tmp_path_factory.mktemp('runs'), {}

    def prepare(name, method, tasks, batch_size):
        cfg = config(tiny_cfg, tiny_checkpoint, root / name)
        cfg.model.method = method
        cfg.train_cfg.protocol.tasks = cfg.train_cfg.protocol.tasks[:tasks]
        cfg.train_dataloader.batch_size = batch_size
        cfg.dump(root / f'{name}.py')
        made[name] = cfg

    default = dict(type='GuidedGSLoRA')
    # The bound lies among the losses: the hinge is open for some joint batches only.
    paper = dict(type='GSLoRA', dropout=False, beta=0.2, bound=2.8)
    # Prototypes are the classes' mean embeddings, to which every process adds what it has seen.
    divergence = dict(
        paper,
        type='GSLoRAPlusPlus',
        prototypes='embeddings',
        prototype_weight=0.5,
        feature_pull_weight=0.1,
    )
    undo = dict(type='UNDO', teacher=str(tiny_checkpoint), noise=dict(decoder=0.3), ramp=0.0)
    for count, name in ((1, 'one'), (2, 'two')):
        prepare(f'undo_{name}', undo, 1, 8 // count)
        cfg = made[f'undo_{name}']
        cfg.model.tune = dict(type='Full', target=r'(decoder|bbox_head)\..*')
        cfg.train_cfg.epochs_per_task = 7  # steps enough for the reader of classes to have a say
        # AdamW makes whole steps of gradients that are rounding alone.
        cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1e-2)
        cfg.dump(root / f'undo_{name}.py')
        prepare(f'default_{name}', default, 2, 8 // count)
        prepare(f'paper_{name}', paper, 1, 8 // count)
        prepare(f'divergence_{name}', divergence, 1, 8 // count)
    prepare('again', default, 2, 4)
    for name in ('default_one', 'paper_one', 'divergence_one', 'undo_one'):
        Runner.from_cfg(copy.deepcopy(made[name])).train()
    launch(root / 'default_two.py', '2', '--cfg-options', 'env_cfg.dist_cfg.backend=gloo')
    # A resumed run needs the files of its finished tasks, too.
    shutil.copytree(root / 'default_two', root / 'again')
    for name in ('paper_two', 'divergence_two', 'undo_two'):
        both_ranks(root / f'{name}.py')
    both_ranks(root / 'again.py', '--resume', root / 'again/epoch_3.pth')
    return made


def losses_of(cfg):
    losses = json.loads(Path(cfg.work_dir, 'losses.json').read_text())
    return {name: torch.tensor(values) for name, values in losses.items()}


def weights_of(cfg, task):
    return torch.load(Path(cfg.work_dir, f'merged/task_0{task}.pth'))['state_dict']


def record_of(cfg):
    record = json.loads(Path(cfg.work_dir, 'forgetting.json').read_text())
    for task in record['tasks']:
        del task['train_seconds'], task['eval_seconds'], task['prepare_seconds']
        del task['merged']  # the file's config names the folder of the detections
    return record['pretrained'], record['tasks']


def assert_same_training(one, two, tasks):
    a, b = losses_of(one), losses_of(two)
    assert a.keys() == b.keys()
    loss_gap = max(float((a[k] - b[k]).abs().max()) for k in a)
    weight_gap = 0.0
    for task in range(1, tasks + 1):
        x, y = weights_of(one, task), weights_of(two, task)
        weight_gap = max([weight_gap] + [float((x[k] - y[k]).abs().max()) for k in x])
    print(f'largest difference: losses {loss_gap:.1e}, merged weights {weight_gap:.1e}')
    assert all(torch.allclose(a[k], b[k], rtol=1e-5, atol=1e-5) for k in a), loss_gap
    assert weight_gap < 1e-5


def test_two_processes_equal_one(runs):
    """14 retain images: the last batch of every epoch is short, two pairs instead of four."""
    one, two = runs['default_one'], runs['default_two']
    assert record_of(one)[1][0]['train_images']['retain'] == 14
    assert_same_training(one, two, tasks=2)
    assert any(weights_of(one, 1)[k].ne(v).any() for k, v in weights_of(one, 2).items())


def test_two_processes_equal_one_when_a_noised_copy_learns(runs):
    """Where nothing is, the level of the gone classes, and what tells them apart are joint."""
    losses = losses_of(runs['undo_one'])
    assert losses['forget_loss_confusion'][-1] > 0 and losses['forget_loss_suppress'].any()
    assert_same_training(runs['undo_one'], runs['undo_two'], tasks=1)


def test_two_processes_equal_one_with_the_authors_method(runs):
    one, two = runs['paper_one'], runs['paper_two']
    assert_same_training(one, two, tasks=1)
    hinge = losses_of(one)['forget_loss_cls']
    assert (hinge == 0).any() and (hinge > 0).any()


def test_two_processes_equal_one_with_prototypes(runs):
    one, two = runs['divergence_one'], runs['divergence_two']
    a, b = (load_file(Path(cfg.work_dir, 'prototypes.safetensors')) for cfg in (one, two))
    assert torch.isfinite(a['prototypes']).any()
    torch.testing.assert_close(a['prototypes'], b['prototypes'], equal_nan=True)
    assert_same_training(one, two, tasks=1)
    for side in ('forget', 'retain'):
        assert losses_of(one)[f'{side}_loss_prototype'].any()


def test_two_processes_evaluate_the_same(runs):
    one, two = runs['default_one'], runs['default_two']
    assert json.dumps(record_of(two)[0]) == json.dumps(record_of(one)[0])
    found, expected = (
        json.loads(Path(f'{cfg.work_dir}_detections.bbox.json').read_text()) for cfg in (two, one)
    )
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert (a['image_id'], a['category_id']) == (b['image_id'], b['category_id'])
        assert a['score'] == pytest.approx(b['score'], abs=1e-4)


def test_two_processes_test_a_checkpoint(runs, both_ranks, tmp_path):
    """tools/test.py, too: what the run measured after its second task."""
    cfg = runs['default_two']
    merged = Path(cfg.work_dir, 'merged/task_02.pth')
    both_ranks(f'{cfg.work_dir}.py', merged, '--work-dir', tmp_path, tool='test')
    (found,) = (json.loads(file.read_text()) for file in tmp_path.glob('*/*.json'))
    expected = record_of(cfg)[1][1]['metrics']
    for name in ('AP_f', 'AP_r', 'AP_o', 'mAP'):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name


def test_only_the_first_rank_writes(runs):
    work_dir = Path(runs['default_two'].work_dir)
    assert len(list(work_dir.glob('epoch_*.pth'))) == 4
    assert not list(work_dir.glob('other_rank/**/*.*'))


def test_two_processes_resume(runs):
    """Resumed after the first epoch of task 2: the same weights and record, bit for bit."""
    whole, again = runs['default_two'], runs['again']
    expected, found = weights_of(whole, 2), weights_of(again, 2)
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert record_of(again)[1] == record_of(whole)[1]


def test_nothing_piles_up_and_gradients_accumulate(
    tiny_cfg, tiny_checkpoint, tmp_path, monkeypatch
):
    """Six tasks, one optimizer step for two iterations."""
    cfg = config(tiny_cfg, tiny_checkpoint, tmp_path / 'run')
    names = ('circle', 'square', 'star', 'heart', 'hexagon', 'cross')
    cfg.train_cfg.update(protocol=dict(tasks=[[name] for name in names]), epochs_per_task=1)
    cfg.model.method.sparsity = dict(select=1.0)  # every step shrinks
    cfg.model.cache_gb = 0.0  # what is kept on purpose has a bound of its own
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.default_hooks.checkpoint.interval = 10
    shrunk, counts, ends = [], [], []

    def proximal_step(groups, thresholds):
        shrunk.append(groups[0].name)

    class CountHook(Hook):
        priority = 'VERY_LOW'

        def before_forget_task(self, runner) -> None:  # no batch of images is alive here
            optimizer = runner.optim_wrapper.optimizer
            gc.collect()
            kinds = [type(thing) for thing in gc.get_objects()]
            counts.append(
                dict(
                    tensors=sum(issubclass(kind, torch.Tensor) for kind in kinds),
                    optimizers=sum(issubclass(kind, torch.optim.Optimizer) for kind in kinds),
                    parameters=sum(p.requires_grad for p in runner.model.parameters()),
                    handles=len(optimizer._optimizer_step_post_hooks)
                    + len(optimizer._optimizer_step_pre_hooks),
                    hooks=len(runner.hooks),
                    infos=len(runner.message_hub.runtime_info),
                )
            )

        def before_merge(self, runner) -> None:
            history = runner.message_hub.get_scalar('train/loss').data[0]
            ends.append((len(runner.optim_wrapper.optimizer.state), history.size))

    monkeypatch.setattr(group_sparsity, 'proximal_step', proximal_step)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(CountHook())
    runner.train()
    steps = [task['steps'] for task in record_of(cfg)[1]]
    assert len(steps) == 6 and any(n % 2 for n in steps)
    assert len(shrunk) == sum(-(-n // 2) for n in steps)
    assert ends == [(12, n) for n in steps]
    # The first task finds less: no task has left its record yet.
    assert counts[1:] == 5 * [counts[1]]


@pytest.mark.parametrize(
    'method',
    [
        dict(type='GuidedGSLoRA'),
        dict(type='GSLoRA', dropout=False),
    ],
    ids=['ours', 'paper'],
)
def test_losses_under_autocast(tiny_cfg, tiny_checkpoint, method):
    """MMEngine has AMP on GPUs only; this is what its context does to the losses."""
    cfg = copy.deepcopy(tiny_cfg)
    views = DATASETS.build(cfg.train_dataloader.dataset)
    partition = Protocol(views.classes, [['circle', 'square']]).partition(1)
    partition.publish()
    views.set_partition(partition)
    model = MODELS.build(cfg.model | dict(method=method))
    model.load_state_dict(torch.load(tiny_checkpoint)['state_dict'])
    groups = model.tune.groups('block')
    for group in groups:
        for matrix in group.B:
            torch.nn.init.normal_(matrix)
    batch = pseudo_collate([views[i] for i in (0, 1, views.num_forget, views.num_forget + 1)])
    batch = model.data_preprocessor(batch, training=True)
    teacher = model.method.teachers
    expected = model(**batch, mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        found = model(**batch, mode='loss')
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # MMDetection's own terms come as its autocast made them, float32 on a GPU.
        if 'drift' in name or 'sparsity' in name or name == 'forget_loss_cls' and teacher:
            assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=0.1)
    sum(found.values()).backward()
    assert all(torch.isfinite(b.grad).all() for g in groups for b in g.A + g.B)
