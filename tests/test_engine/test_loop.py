"""Whole tiny runs: two forgetting tasks of two epochs each."""

import copy
import json
import math
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmgslora.engine import ContinualForgettingLoop
from mmgslora.errors import ForgettingError
from mmgslora.lora import apply_adapter, lora_layers


def plain_weights(model):
    return {k[len('detector.') :]: v for k, v in model.state_dict().items() if 'lora_' not in k}


def record_of(runner):
    return json.loads(Path(runner.work_dir, 'forgetting.json').read_text())


@pytest.fixture(scope='module')
def finished(tiny_cfg, tiny_checkpoint, tmp_path_factory, pictures):
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from = str(tiny_checkpoint)
    cfg.work_dir = str(tmp_path_factory.mktemp('finished') / 'run')
    cfg.experiment_name = 'finished'
    runner = Runner.from_cfg(cfg)
    with pictures():
        runner.train()
    return runner


def test_record(finished):
    record = record_of(finished)
    first, second = record['tasks']
    assert first['metrics']['mAP'] > 0 and record['pretrained']['mAP'] > 0
    assert (first['task'], first['forget'], first['old']) == (1, ['circle', 'square'], [])
    assert (second['task'], second['forget'], second['old']) == (2, ['star'], ['circle', 'square'])
    assert second['retain'] == [
        'triangle', 'hexagon', 'cross', 'ring', 'crescent', 'arrow', 'heart'
    ]  # fmt: skip
    assert {'AP_f', 'AP_r', 'Drop', 'H', 'AR_f@0.3', 'AR_f@0.05', 'paper/AP_f'} <= set(
        first['metrics']
    )
    assert 'AP_o' in second['metrics'] and 'AP_o' not in first['metrics']
    assert set(first['groups']) == {
        'encoder.layers.0.ffn',
        'decoder.layers.0.ffn',
        'decoder.layers.1.ffn',
    }
    # 3 blocks, each (16 + 32) * 16 numbers for both linears
    assert first['trainable_params'] == 3 * 2 * (16 + 32) * 16
    assert first['total_params'] == sum(p.numel() for p in finished.model.parameters()) - 4608
    batches = -(-2 * first['train_images']['retain'] // 8)
    assert first['steps'] == 2 * batches
    assert record['pretrained']['per_class'].keys() >= {'circle', 'star'}
    assert record['seed'] == 0 and 'torch' in record['versions']


def test_files(finished):
    work_dir = Path(finished.work_dir)
    for name in (
        'forgetting.png',
        'before_after.png',
        'adapters/task_01/adapter_config.json',
        'adapters/task_02/adapter_model.safetensors',
        'merged/task_01.pth',
        'merged/task_02.pth',
    ):
        assert (work_dir / name).stat().st_size > 0
    assert not list(work_dir.rglob('*.tmp'))


def test_only_the_adapted_weights_changed(finished, tiny_checkpoint):
    """Frozen parameters and buffers, batch-norm statistics too, are bit-identical."""
    before = torch.load(tiny_checkpoint)['state_dict']
    after = plain_weights(finished.model)
    assert after.keys() == before.keys()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    adapted = {f'{name}.weight' for name in lora_layers(finished.model.detector)}
    assert changed and changed <= adapted  # the head is as it was trained
    assert any('running_mean' in k for k in before)


def test_original_and_adapters_rebuild_every_merged_model(finished, tiny_cfg, tiny_checkpoint):
    """Whatever a task changed is in its folder, bit for bit."""
    detector = MODELS.build(copy.deepcopy(tiny_cfg.model.detector))
    detector.load_state_dict(torch.load(tiny_checkpoint)['state_dict'])
    work_dir = Path(finished.work_dir)
    for task in (1, 2):
        metadata = apply_adapter(detector, work_dir / f'adapters/task_0{task}')
        assert metadata['partition']['task'] == task
        merged = torch.load(work_dir / f'merged/task_0{task}.pth')['state_dict']
        state = detector.state_dict()
        assert merged.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in merged.items())


def test_files_are_open_to_others(finished):
    umask = os.umask(0)
    os.umask(umask)
    names = ('adapters/task_01/adapter_model.safetensors', 'merged/task_01.pth', 'forgetting.json')
    for name in names:
        assert Path(finished.work_dir, name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_record_names_what_was_done(finished):
    record = record_of(finished)
    assert (record['family'], record['split'], record['seal']) == ('detector', 'test', False)
    method = finished.train_loop.model.method
    assert record['method']['type'] == type(method).__name__
    settings = json.loads(json.dumps(method.settings()))
    assert record['method'] == dict(type='GuidedGSLoRA', **settings)
    assert settings['sparsity']['mode'] == 'proximal' and settings['beta'] == 0.4
    targets = list(lora_layers(finished.model.detector))
    assert record['tune'] == dict(
        type='LoRA', rank=16, lora_alpha=2.0, init='kaiming', targets=targets
    )
    assert record['schedule'] == dict(
        epochs_per_task=2,
        steps_per_task=None,
        served=None,
        optimizer='AdamW',
        lr=[0.02],
        batch_size=8,
        processes=1,
        data_ratio=0.4,
        min_images=1,
        few_shot=None,
        by_class=True,
        redraw=False,
    )


def test_sealing_changes_the_sealed_file_alone(finished, run_cfg, tmp_path):
    """The sequence is bit for bit that of a run without; a sealed file can forget on."""
    run_cfg.train_cfg.seal = True
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    expected, work_dir = record_of(finished)['tasks'], Path(runner.work_dir)
    for number, (theirs, task) in enumerate(zip(expected, record_of(runner)['tasks']), 1):
        sealed = {k: task['metrics'].pop(k) for k in list(task['metrics']) if 'sealed/' in k}
        assert task['metrics'] == theirs['metrics'] and task['per_class'] == theirs['per_class']
        groups = ('AP_f', 'AP_r') if number == 1 else ('AP_f', 'AP_o', 'AP_r')
        assert sealed.keys() == {f'sealed/{group}' for group in groups}
        assert {sealed[k] for k in sealed if 'AP_r' not in k} == {0.0}
        assert sealed['sealed/AP_r'] > 0
        name = f'task_{number:02d}.pth'
        merged = torch.load(Path(finished.work_dir, 'merged', name))['state_dict']
        ours = torch.load(work_dir / 'merged' / name)['state_dict']
        assert all(torch.equal(merged[k], ours[k]) for k in merged)
        file = torch.load(work_dir / 'sealed' / name)
        gone = {1: [0, 1], 2: [0, 1, 4]}[number]  # circle, square, then star
        assert file['meta']['sealed'] == task['forget'] + task['old']
        for key, value in file['state_dict'].items():
            if 'cls_branches' not in key:
                assert torch.equal(value, merged[key])
                continue
            assert (value[gone] == (-1e4 if key.endswith('bias') else 0)).all()
            stay = [label for label in range(10) if label not in gone]
            assert torch.equal(value[stay], merged[key][stay])
    assert not Path(finished.work_dir, 'sealed').exists()

    run_cfg.load_from = str(work_dir / 'sealed/task_02.pth')
    run_cfg.train_cfg.protocol.tasks = [['heart']]
    run_cfg.work_dir, run_cfg.experiment_name = str(tmp_path / 'on'), f'{tmp_path.name}_on'
    onward = Runner.from_cfg(run_cfg)
    onward.train()
    assert all(torch.isfinite(v).all() for v in plain_weights(onward.model).values())
    merged = torch.load(Path(onward.work_dir, 'merged/task_01.pth'))['state_dict']
    assert (merged['bbox_head.cls_branches.1.bias'][[0, 1, 4]] == -1e4).all()


@pytest.mark.parametrize('split', ['val', 'test'])
def test_the_split_that_is_measured_on(run_cfg, shapes_root, tmp_path, split):
    """One of the splits has nothing but circles and squares: no other AP is known on it."""
    content = json.loads((shapes_root / 'annotations/val.json').read_text())
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] < 3]
    file = tmp_path / 'two.json'
    file.write_text(json.dumps(content))
    run_cfg[f'{split}_dataloader'].dataset.ann_file = str(file)
    run_cfg[f'{split}_evaluator'].ann_file = str(file)
    run_cfg.train_cfg.update(protocol=dict(tasks=[['circle']]), epochs_per_task=1)
    run_cfg.train_cfg.evaluate_on = split
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    record = record_of(runner)
    assert record['split'] == split
    assert set(record['tasks'][0]['per_class']) == {'circle', 'square'}


def test_evaluators_in_a_list_and_a_batch_sampler(run_cfg):
    """As MMDetection's COCO configs have them: pairs stay together, files stay MMDetection's."""
    run_cfg.test_evaluator = [run_cfg.test_evaluator]
    run_cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
    run_cfg.train_cfg.update(protocol=dict(tasks=[['circle']]), epochs_per_task=1)
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    meta = torch.load(Path(runner.work_dir, 'merged/task_01.pth'))['meta']
    assert 'mmgslora' not in meta['cfg'] and "type='CocoMetric'" in meta['cfg']
    sides = [view.metainfo['view'] for view in next(iter(runner.train_dataloader))['data_samples']]
    assert sides == ['forget', 'retain'] * 4


def test_the_rate_is_scaled_with_the_batch_in_every_task(run_cfg):
    run_cfg.auto_scale_lr = dict(enable=True, base_batch_size=32)
    run_cfg.train_cfg.update(protocol=dict(tasks=[['circle'], ['star']]), epochs_per_task=1)
    runner = Runner.from_cfg(run_cfg)
    rates = []
    step = runner.train_loop.run_iter
    runner.train_loop.run_iter = lambda *batch: (
        step(*batch),
        rates.append(runner.optim_wrapper.param_groups[0]['initial_lr']),
    )
    runner.train()
    assert set(rates) == {run_cfg.optim_wrapper.optimizer.lr * 8 / 32}


def test_frozen_parameters_are_no_lines_in_the_log(run_cfg, capsys):
    """MMDetection's configs set rates for parts of a model, here nearly all of it is frozen."""
    run_cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'backbone': dict(lr_mult=0.1)})
    runner = Runner.from_cfg(run_cfg)
    runner.build_train_loop(run_cfg.train_cfg)
    wrapper = runner.build_optim_wrapper(run_cfg.optim_wrapper)
    assert len(wrapper.param_groups) > 1
    runner.logger.warning('another line')
    printed = capsys.readouterr()
    assert 'another line' in printed.out + printed.err
    assert 'is skipped' not in printed.out + printed.err


def test_splits_that_cannot_be_measured_on(run_cfg):
    run_cfg.train_cfg.evaluate_on = 'train'
    with pytest.raises(ForgettingError, match="evaluate_on is 'train'; it can be test or val"):
        Runner.from_cfg(run_cfg).train()
    run_cfg.train_cfg.pop('evaluate_on')
    run_cfg.experiment_name += '_without_a_test_loader'
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        run_cfg[key] = None
    with pytest.raises(ForgettingError, match='the config has no test_dataloader'):
        Runner.from_cfg(run_cfg).train()


def test_blocks_with_a_norm_changed(finished, tiny_checkpoint):
    before = torch.load(tiny_checkpoint)['state_dict']
    after = torch.load(Path(finished.work_dir, 'merged/task_01.pth'))['state_dict']
    for name, norm in record_of(finished)['tasks'][0]['groups'].items():
        same = all(torch.equal(before[k], after[k]) for k in before if k.startswith(name))
        assert same == (norm == 0)


def test_zero_groups_are_untouched_blocks(run_cfg, tiny_checkpoint):
    """With an alpha no step can overcome, every block is bit for bit the old one."""
    run_cfg.model.method.update(sparsity=dict(alpha=0.95))
    run_cfg.train_cfg.protocol.tasks = [['circle']]
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    (task,) = record_of(runner)['tasks']
    assert set(task['groups'].values()) == {0.0} and task['zero_group_ratio'] == 1
    before = torch.load(tiny_checkpoint)['state_dict']
    after = torch.load(Path(runner.work_dir, 'merged/task_01.pth'))['state_dict']
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_resume_without_interruption_changes_nothing(finished, tiny_cfg, run_cfg):
    """Stopped after the first epoch of task 2 and resumed: the same numbers, bit for bit."""

    class Stop(Exception):
        pass

    runner = Runner.from_cfg(run_cfg)
    run_epoch = type(runner.build_train_loop(run_cfg.train_cfg)).run_epoch

    def stop_after_three(loop):
        if loop._epoch == 3:
            raise Stop
        run_epoch(loop)

    runner._train_loop = runner.build_train_loop(run_cfg.train_cfg)
    runner._train_loop.run_epoch = lambda: stop_after_three(runner._train_loop)
    with pytest.raises(Stop):
        runner.train()
    assert len(record_of(runner)['tasks']) == 1
    again = copy.deepcopy(run_cfg)
    again.resume, again.load_from = True, None
    again.experiment_name = f'{run_cfg.experiment_name}_again'
    resumed = Runner.from_cfg(again)
    resumed.train()
    expected, found = plain_weights(finished.model), plain_weights(resumed.model)
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    for a, b in zip(record_of(finished)['tasks'], record_of(resumed)['tasks']):
        assert a['metrics'] == b['metrics'] and a['groups'] == b['groups']


def test_penalty_mode(run_cfg):
    run_cfg.model.method = dict(type='GSLoRA', sparsity=dict(warmup_epochs=1, by='module'))
    run_cfg.train_cfg.protocol.tasks = [['circle']]
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    (task,) = record_of(runner)['tasks']
    assert len(task['groups']) == 6  # two linears in each of three blocks
    assert all(norm > 0 for norm in task['groups'].values()) and task['zero_group_ratio'] == 0


def test_no_test_data_influences_training(finished, run_cfg, shapes_root, tmp_path):
    """With every held-out label turned into another, the trained weights are the same."""
    content = json.loads((shapes_root / 'annotations/val.json').read_text())
    for item in content['annotations']:
        item['category_id'] = item['category_id'] % 10 + 1
    other = tmp_path / 'other.json'
    other.write_text(json.dumps(content))
    for split in ('val', 'test'):
        run_cfg[f'{split}_dataloader'].dataset.ann_file = str(other)
        run_cfg[f'{split}_evaluator'].ann_file = str(other)
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    expected, found = plain_weights(finished.model), plain_weights(runner.model)
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_adapters_of_another_run_are_not_overwritten(finished, run_cfg):
    run_cfg.work_dir = finished.work_dir
    adapter = Path(run_cfg.work_dir, 'adapters/task_01/adapter_model.safetensors')
    before = adapter.read_bytes()
    with pytest.raises(ForgettingError, match='task_01, task_02.*--resume'):
        Runner.from_cfg(run_cfg).train()
    assert adapter.read_bytes() == before


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(run_cfg):
    run_cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1e30)
    run_cfg.optim_wrapper.clip_grad = None
    with pytest.raises(ForgettingError, match='Task 1, epoch 1, iteration 2: loss term .*loss_'):
        Runner.from_cfg(run_cfg).train()
    assert not list(Path(run_cfg.work_dir).glob('epoch_*.pth'))
    assert not Path(run_cfg.work_dir, 'adapters').exists()


def test_a_random_model_has_nothing_to_forget(run_cfg):
    run_cfg.load_from = None
    with pytest.raises(ForgettingError, match='set load_from'):
        Runner.from_cfg(run_cfg).train()


def test_checkpoint_of_other_classes(run_cfg, tiny_checkpoint, tmp_path):
    checkpoint = torch.load(tiny_checkpoint)
    names = list(run_cfg.train_cfg.protocol.tasks[0]) + list('abcdefgh')
    checkpoint['meta'] = dict(dataset_meta=dict(classes=names))
    torch.save(checkpoint, tmp_path / 'other.pth')
    run_cfg.load_from = str(tmp_path / 'other.pth')
    with pytest.raises(ForgettingError, match="'a' as class 2, the data set 'triangle'"):
        Runner.from_cfg(run_cfg).train()


def test_plain_model_from_the_merged_file_alone(finished):
    """The merged file carries the config of the plain detector."""
    from mmengine.config import Config

    checkpoint = torch.load(Path(finished.work_dir, 'merged/task_02.pth'))
    cfg = Config.fromstring(checkpoint['meta']['cfg'], '.py')
    model = MODELS.build(cfg.model)
    model.load_state_dict(checkpoint['state_dict'])
    assert type(model).__name__ == 'DeformableDETR'


def test_a_cosine_without_an_end_takes_a_task():
    """The rate after each epoch of a task of four is the half cosine of 1."""
    from mmengine.optim import CosineAnnealingLR

    from mmgslora.engine.loop import _over_a_task

    written = dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)
    warmup = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=10)
    filled = _over_a_task([warmup, written, {**written, 'T_max': 9}], epochs=4)
    assert filled == [warmup, {**written, 'end': 4}, {**written, 'T_max': 9}]
    assert _over_a_task(written, 4) == [{**written, 'end': 4}] and 'end' not in written
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = CosineAnnealingLR(optimizer, by_epoch=True, end=4)
    for epoch in (1, 2, 3):
        optimizer.step()
        scheduler.step()
        expected = (1 + math.cos(math.pi * epoch / 4)) / 2
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected)


def test_the_log_of_a_resumed_run_has_no_needless_warnings(finished):
    """Every number that a checkpoint lists as kept is in it: MMEngine warns of those that are not.

    The history was cleared before task 2, with numbers that only the pre-trained model has.
    """
    hub = torch.load(Path(finished.work_dir, 'epoch_4.pth'))['message_hub']
    assert hub['resumed_keys'].keys() == hub['log_scalars'].keys() | hub['runtime_info'].keys()


@pytest.mark.parametrize(('epochs', 'steps', 'taken'), [(2, 5, 4), (1, 11, 11)])
def test_a_schedule_in_steps(run_cfg, epochs, steps, taken):
    """So many steps whatever the data, in epochs of equal length; the record says how many."""
    run_cfg.train_cfg.update(epochs_per_task=epochs, steps_per_task=steps)
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    assert [task['steps'] for task in record_of(runner)['tasks']] == [taken, taken]


def test_a_schedule_of_too_few_steps(run_cfg):
    run_cfg.train_cfg.update(epochs_per_task=6, steps_per_task=5)
    with pytest.raises(ForgettingError, match='steps_per_task is 5; it must be at least.* 6'):
        Runner.from_cfg(run_cfg).train()


def test_every_epoch_has_seeds_of_its_own_and_so_have_its_workers():
    """Two epochs would see the same flips and crops; the same epoch of another run does."""

    def drawn(seed, epoch):
        loader = SimpleNamespace(worker_init_fn=partial(dict, rank=0, seed=99))
        loop = SimpleNamespace(runner=SimpleNamespace(seed=seed), _epoch=epoch, dataloader=loader)
        ContinualForgettingLoop._seed_epoch(loop)
        return torch.rand(()).item(), loader.worker_init_fn()['seed']

    with torch.random.fork_rng():
        found = [drawn(*moment) for moment in ((0, 0), (0, 1), (1, 0), (None, 2))]
        assert drawn(0, 1) == found[1]
    assert all(len({*each}) == 4 for each in zip(*found))


def test_every_task_has_a_fresh_adapter_of_its_own():
    """The same in every process, and in the run that is resumed there."""

    def drawn(seed, task):
        loop = SimpleNamespace(runner=SimpleNamespace(seed=seed), task=task)
        return torch.rand((), generator=ContinualForgettingLoop._generator(loop)).item()

    assert len({drawn(0, 1), drawn(0, 2), drawn(0, 3), drawn(5, 1)}) == 4
    assert drawn(None, 2) == drawn(0, 2)


def test_the_first_task_alone_begins_as_the_first(run_cfg, monkeypatch):
    """Adapters of init='xavier' are not nothing there, and the teachers are those of the method."""
    run_cfg.train_cfg.update(protocol=dict(tasks=[['circle'], ['star']]), epochs_per_task=1)
    runner = Runner.from_cfg(run_cfg)
    tune = runner.model.tune
    begun, begin = [], tune.begin_task
    monkeypatch.setattr(tune, 'begin_task', lambda *given: (begun.append(given[1:]), begin(*given)))
    runner.train()
    assert begun == [(True, ('original',)), (False, ('original',))]
