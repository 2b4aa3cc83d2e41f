import json
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmgslora import plan as module
from mmgslora.errors import ForgettingError
from mmgslora.plan import Plan, TaskPlan, make_plan, plan_lines, plan_table


def size_of(*paths):
    return sum(Path(path).stat().st_size for path in paths)


def listing():
    """What lies here; hypothesis, in another worker, may make its own folder at any moment."""
    return sorted(path for path in Path().iterdir() if path.name != '.hypothesis')


def test_plan_is_what_the_run_then_takes(run_cfg, tmp_path, monkeypatch):
    """Images, steps and bytes against a finished run; the plan itself leaves nothing behind."""
    before = listing(), run_cfg.pretty_text
    usage, disks = shutil.disk_usage, []
    monkeypatch.setattr('shutil.disk_usage', lambda path: (disks.append(path), usage(path))[1])
    plan = make_plan(run_cfg, timed_steps=0)
    assert disks and all(disk.is_relative_to(tmp_path) for disk in disks)  # the work_dir's own
    assert not list(tmp_path.iterdir())
    assert (listing(), run_cfg.pretty_text) == before
    assert not Path(run_cfg.work_dir).exists()
    assert plan.memory is None and plan.tasks[0].seconds is None and not plan.notes

    runner = Runner.from_cfg(run_cfg)
    runner.train()
    folder = Path(runner.work_dir)
    record = json.loads((folder / 'forgetting.json').read_text())
    assert len(plan.tasks) == 2
    for task, done in zip(plan.tasks, record['tasks']):
        assert task.number == done['task'] and list(task.forget) == done['forget']
        images = dict(forget=task.forget_images, retain=task.retain_images)
        assert images == done['train_images']
        assert task.steps == done['steps']
    adapter = folder.glob('adapters/task_01/*.safetensors')
    left = size_of(folder / 'merged/task_01.pth', *adapter)
    assert plan.task_bytes == pytest.approx(left, rel=0.3)  # names and config beside the numbers
    assert plan.task_bytes < left
    assert plan.resume_bytes == pytest.approx(size_of(*folder.glob('epoch_*.pth')), rel=0.3)


def test_timed_with_random_weights(run_cfg, monkeypatch):
    """A checkpoint that is not here does not stop a plan; what is timed is time per step."""
    run_cfg.model.method = dict(type='GSLoRAPlusPlus', prototypes='embeddings')
    run_cfg.load_from = 'https://nowhere.invalid/detector.pth'
    run_cfg.model.detector.backbone.init_cfg = dict(
        type='Pretrained', checkpoint='torchvision://resnet18'
    )
    at = iter(range(0, 10_000, 3))
    monkeypatch.setattr(module, '_now', lambda: float(next(at)))  # 3 s from one look to the next
    plan = make_plan(run_cfg, timed_steps=2)
    assert "'https://nowhere.invalid/detector.pth'" in plan.notes[0]
    assert [task.seconds for task in plan.tasks] == [3.0 * task.steps for task in plan.tasks]
    assert plan.tasks[0].evaluation == 3.0  # 12 images are one batch
    assert plan.memory > 10_000_000


def test_a_task_shorter_than_what_is_timed(run_cfg):
    run_cfg.train_dataloader.batch_size = 64
    run_cfg.train_cfg.epochs_per_task = 1
    plan = make_plan(run_cfg, timed_steps=50)
    assert plan.tasks[0].steps == 1 and plan.tasks[0].seconds > 0


def test_classifier(repo_root, tmp_path):
    cfg = Config.fromfile(repo_root / 'configs/classification/gslora_classification_forget.py')
    cfg.model.classifier.backbone.update(num_layers=2, hidden_dim=16, num_heads=2, mlp_dim=24)
    cfg.model.classifier.head.embed_dims = 16
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = loader.dataset.get('dataset', loader.dataset)
        dataset.update(data_root=f'{tmp_path}/data/', generate=dict(train=16, val=2, test=4))
    cfg.train_dataloader.dataset.min_images = 1
    cfg.load_from = str(tmp_path / 'missing.pth')
    plan = make_plan(cfg, timed_steps=1)
    # 20 % of 16 images of each of two classes to forget, and of eight to retain
    assert (plan.tasks[0].forget_images, plan.tasks[0].retain_images) == (6, 25)
    assert plan.tasks[0].steps == 8 * 2  # 8 epochs of 25 pairs, 16 in a batch
    assert plan.tasks[0].seconds > 0 and plan.tasks[0].evaluation > 0


def test_not_a_forgetting_run(repo_root):
    cfg = Config.fromfile(repo_root / 'configs/shapes/deformable-detr_shapes.py')
    with pytest.raises(ForgettingError, match='does not forget anything'):
        make_plan(cfg)


def rows(table):
    return list(zip(*(column.cells for column in table.columns)))


def test_table():
    tasks = [
        TaskPlan(1, ('cat', 'dog'), 1200, 11800, 2000, 300.0, 90.0),
        TaskPlan(2, ('cow',), 70, 9000, 1500, 225.0, 90.0),
    ]
    plan = Plan(tasks, task_bytes=160_000_000, resume_bytes=1_500_000_000, memory=2 * 10**9)
    assert rows(plan_table(plan)) == [
        ('1', 'cat, dog', '1,200', '11,800', '2,000', '5 min', '90.0 s', '160.0 MB'),
        ('2', 'cow', '70', '9,000', '1,500', '4 min', '90.0 s', '160.0 MB'),
        ('', 'all', '', '', '3,500', '9 min', '3 min', '320.0 MB'),
    ]
    first, second, *_ = plan_lines(plan)
    assert first.startswith('Checkpoints to resume from: 1.5 GB') and '2.0 GB' in second


def test_table_of_nothing_timed():
    plan = Plan([TaskPlan(1, ('cat',), 1, 2, 3)], task_bytes=1, resume_bytes=2, notes=['Note.'])
    assert rows(plan_table(plan))[-1][5:7] == ('–', '–')
    assert plan_lines(plan) == ['Checkpoints to resume from: 0.0 MB of disk.', 'Note.']


def test_command_line(run_cfg, tmp_path, capsys):
    config = tmp_path / 'config.py'
    run_cfg.dump(config)
    module.main([str(config), '--no-timing', '--cfg-options', 'train_cfg.epochs_per_task=3'])
    out = capsys.readouterr().out
    assert 'circle, square' in out and 'annotations' not in out
    with pytest.raises(ForgettingError, match='does not exist'):
        module.main([str(tmp_path / 'nothing.py')])
    (tmp_path / 'broken.py').write_text('model = dict(')
    with pytest.raises(ForgettingError, match='cannot be read: '):
        module.main([str(tmp_path / 'broken.py')])
    with pytest.raises(SystemExit, match='2'):
        module.main([str(config), '--cfg-options', 'foo'])
