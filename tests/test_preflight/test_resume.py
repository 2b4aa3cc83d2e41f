"""What is refused before a run writes anything, and what goes on."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from mmgslora.errors import ForgettingError
from mmgslora.loading import read_checkpoint
from mmgslora.preflight import examine
from mmgslora.preflight.checkpoint import forgotten_in
from mmgslora.preflight.resume import resume_in


def check_start(cfg):
    plan = examine(cfg)
    if plan.sentences:
        raise ForgettingError('\n'.join(plan.sentences))
    return plan.forgotten


TASKS = [['circle', 'square'], ['star']]
METHOD = dict(type='GSLoRAPlusPlus', prototypes='embeddings')  # what it must remember has a file


@pytest.fixture(scope='module')
def finished(tiny_cfg, tiny_checkpoint, tmp_path_factory):
    """The work_dir of a finished run, not to be written to."""
    cfg = copy.deepcopy(tiny_cfg)
    cfg.load_from = str(tiny_checkpoint)
    cfg.work_dir = str(tmp_path_factory.mktemp('start_check') / 'run')
    cfg.experiment_name = 'start_check'
    cfg.model.method = METHOD
    cfg.train_cfg.protocol.tasks = TASKS
    cfg.train_cfg.epochs_per_task = 1
    Runner.from_cfg(cfg).train()
    return Path(cfg.work_dir)


@pytest.fixture
def cfg(run_cfg, finished):
    """The finished run's config, to be resumed."""
    run_cfg.model.method = METHOD
    run_cfg.train_cfg.protocol.tasks = TASKS
    run_cfg.train_cfg.epochs_per_task = 1
    run_cfg.update(work_dir=str(finished), resume=True, load_from=None)
    return run_cfg


def record_of(work_dir):
    return json.loads(Path(work_dir, 'forgetting.json').read_text())


def test_the_same_run_can_be_resumed(cfg):
    assert check_start(cfg) == ()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(tasks=[['ring']]), r'has the tasks .*tasks=.*"circle".*"star"\], \["ring"\]\]'),
        (dict(tasks=[['circle', 'square']]), 'the config now says'),
        (dict(tasks=[['circle', 'hexagon'], ['star']]), 'keep the tasks it has'),
        (dict(tasks=[*TASKS, ['star']]), "'star' is to be forgotten in task 2 and again in task 3"),
        (dict(missing=['ring']), r"protocol.missing was \[\] and is \['ring'\] now"),
    ],
)
def test_other_tasks_are_refused(cfg, change, words):
    cfg.train_cfg.protocol.update(change)
    with pytest.raises(ForgettingError, match=words):
        check_start(cfg)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'model.method.type': 'GSLoRA'}, "model.method.type was '.+' and is 'GSLoRA' now"),
        (
            {'model.method.sparsity.alpha': 0.7},
            "model.method.sparsity.alpha was 'not set' and is 0.7",
        ),
        ({'model.tune.rank': 4}, "model.tune.rank was 'not set' and is 4"),
        ({'train_cfg.epochs_per_task': 3}, 'train_cfg.epochs_per_task was 1 and is 3 now'),
        ({'randomness.seed': 5}, 'randomness.seed was 0 and is 5 now'),
        ({'train_dataloader.dataset.data_ratio': 1.0}, 'data_ratio was 0.4 and is 1.0 now'),
        ({'train_dataloader.dataset.min_images': 5}, 'min_images was 1 and is 5 now'),
        ({'train_dataloader.sampler.by_class': False}, "by_class was 'not set' and is False now"),
        ({'train_dataloader.dataset.few_shot': 2}, "few_shot was 'not set' and is 2 now"),
        ({'optim_wrapper.optimizer.lr': 1e-3}, r'optimizer.lr was 0.02 and is 0.001 now'),
    ],
)
def test_other_settings_are_refused(cfg, options, words):
    cfg.merge_from_dict(options)
    with pytest.raises(ForgettingError, match=f'{words}.*Take them back'):
        check_start(cfg)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (
            dict(auto_scale_lr=dict(enable=True, base_batch_size=16)),
            "auto_scale_lr.base_batch_size was 'not set' and is 16 now; auto_scale_lr.enable was",
        ),
        (
            dict(custom_hooks=[dict(type='AveragingHook', decay=0.9)]),
            "AveragingHook.decay was 'not set' and is 0.9 now",
        ),
        (dict(train_dataloader=dict(drop_last=True)), 'drop_last was False and is True now'),
    ],
)
def test_what_else_decides_the_steps_is_kept(cfg, options, words):
    options['custom_hooks'] = [*cfg.custom_hooks, *options.get('custom_hooks', ())]
    cfg.merge_from_dict(options)
    with pytest.raises(ForgettingError, match=f'{words}.*Take them back'):
        check_start(cfg)


def test_a_checkpoint_of_an_earlier_version_does_not_say_it(cfg, finished, tmp_path):
    content = torch.load(finished / 'epoch_2.pth')
    del content['message_hub']['runtime_info']['made_with']['also']
    torch.save(content, tmp_path / 'epoch_2.pth')
    cfg.load_from = str(tmp_path / 'epoch_2.pth')
    cfg.train_dataloader.drop_last = True
    assert check_start(cfg) == ()


def test_settings_that_change_nothing_are_free(cfg):
    cfg.train_dataloader.num_workers = 1
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=16)
    cfg.train_cfg.protocol.tasks = tuple(tuple(task) for task in TASKS)
    cfg.param_scheduler = tuple(cfg.param_scheduler)
    check_start(cfg)


def test_a_plain_checkpoint_cannot_be_resumed(cfg, tiny_checkpoint):
    cfg.load_from = str(tiny_checkpoint)
    with pytest.raises(ForgettingError, match='plain.pth.* no checkpoint of a forgetting run'):
        check_start(cfg)


@pytest.mark.parametrize('kept', ['adapters/task_01', 'merged/task_02.pth', 'forgetting.json'])
def test_each_trace_of_a_run_is_seen(run_cfg, tmp_path, kept):
    path = tmp_path / 'run' / kept
    path.parent.mkdir(parents=True)
    path.touch()
    words = f'already holds a forgetting run .{path.stem}.*no checkpoint to resume'
    with pytest.raises(ForgettingError, match=words):
        check_start(run_cfg)
    path.unlink()
    check_start(run_cfg)


def test_other_trainings_pass(run_cfg):
    run_cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    run_cfg.load_from = 'nowhere.pth'
    assert check_start(run_cfg) == ()


def test_an_evaluator_of_another_file(run_cfg):
    run_cfg.test_evaluator.ann_file = 'nowhere.json'
    with pytest.raises(ForgettingError, match="test_evaluator.ann_file is 'nowhere.json'"):
        check_start(run_cfg)


def test_a_later_request_in_the_same_run(cfg, finished, tmp_path):
    """--resume with one more task: the first two stay as they were, the third is served."""
    shutil.copytree(finished, tmp_path / 'run')
    last = tmp_path / 'run/epoch_2.pth'
    (tmp_path / 'run/last_checkpoint').write_text(str(last))
    cfg.work_dir = str(tmp_path / 'run')
    cfg.train_cfg.protocol.tasks = [*TASKS, ['ring']]
    Runner.from_cfg(cfg).train()
    before, after = record_of(finished), record_of(cfg.work_dir)
    assert after['tasks'][:2] == before['tasks']
    assert after['tasks'][2]['forget'] == ['ring']
    assert after['tasks'][2]['old'] == ['circle', 'square', 'star']
    merged = tmp_path / 'run/merged/task_03.pth'
    assert set(forgotten_in(read_checkpoint(merged))) == {'circle', 'square', 'star', 'ring'}
    with pytest.raises(ForgettingError, match='"ring"'):  # now a part of its history
        check_start(cfg_with(cfg, [*TASKS, ['arrow']]))


def cfg_with(cfg, tasks):
    cfg = copy.deepcopy(cfg)
    cfg.train_cfg.protocol.tasks = tasks
    return cfg


def test_a_run_from_a_merged_file_leaves_gone_what_is_gone(run_cfg, finished):
    """The forgotten classes are old from task 1 on, in no view, and cannot be asked for again."""
    run_cfg.load_from = str(finished / 'merged/task_02.pth')
    run_cfg.train_cfg.epochs_per_task = 1
    with pytest.raises(ForgettingError, match="'star' is in task 1, but .* forgotten it already"):
        Runner.from_cfg(cfg_with(run_cfg, [['star']])).train()
    run_cfg = cfg_with(run_cfg, [['ring'], ['arrow']])
    run_cfg.experiment_name += '_second'
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    first, second = record_of(runner.work_dir)['tasks']
    assert first['old'] == ['circle', 'square', 'star'] and 'AP_o' in first['metrics']
    assert second['old'] == ['circle', 'square', 'star', 'ring']
    assert not {'circle', 'square', 'star'} & {*first['retain'], *second['retain']}
    kept = runner.train_loop.views.images_of_classes('retain')
    assert not {'circle', 'square', 'star', 'ring'} & set(kept)
    meta = torch.load(Path(runner.work_dir, 'merged/task_01.pth'))['meta']
    assert meta['forgotten'] == ['circle', 'square', 'star', 'ring']
    # A resumed run knows it too, though its own checkpoint is no merged file.
    run_cfg.update(resume=True, load_from=None)
    assert check_start(run_cfg) == ('circle', 'square', 'star')


@pytest.fixture
def copied(cfg, finished, tmp_path):
    """A copy of the finished run, whose last_checkpoint still names the old folder."""
    shutil.copytree(finished, tmp_path / 'copy')
    cfg.work_dir = str(tmp_path / 'copy')
    return tmp_path / 'copy'


@pytest.mark.parametrize('left', ['last_checkpoint', 'nothing', 'empty'])
def test_a_copied_run_goes_on_from_itself(cfg, copied, left):
    assert str(copied) not in (copied / 'last_checkpoint').read_text()
    if left == 'nothing':
        (copied / 'last_checkpoint').unlink()
    elif left == 'empty':
        (copied / 'last_checkpoint').write_text('')
    assert not resume_in(cfg, 'auto')
    assert cfg.load_from == str(copied / 'epoch_2.pth') and check_start(cfg) == ()
    cfg.load_from = None  # as MMDetection's own script leaves it
    assert check_start(cfg) == ()


LOST = {
    'merged file': ('merged/task_01.pth', None),
    'merged file cut off': ('merged/task_02.pth', 100),
    'adapter': ('adapters/task_01/adapter_model.safetensors', None),
    'adapter cut off': ('adapters/task_02/adapter_model.safetensors', 100),
    'config of an adapter': ('adapters/task_02/adapter_config.json', 5),
}


@pytest.mark.parametrize('what', LOST)
def test_results_that_are_lost_are_said(cfg, copied, what):
    name, size = LOST[what]
    (copied / name).unlink() if size is None else os.truncate(copied / name, size)
    part = name if 'merged' in name else str(Path(name).parent)
    with pytest.raises(ForgettingError, match=f'{part} of .* is missing or broken'):
        check_start(cfg)


def test_prototypes_are_in_the_checkpoint(cfg, copied):
    (copied / 'prototypes.safetensors').unlink()
    assert check_start(cfg) == ()


@pytest.mark.parametrize('size', [0, 1000])
def test_a_checkpoint_that_is_cut_off(cfg, copied, size):
    os.truncate(copied / 'epoch_2.pth', size)
    with pytest.raises(ForgettingError, match='cut off or no checkpoint.*another --work-dir'):
        check_start(cfg)
    shutil.copy(copied / 'epoch_2.pth', copied / 'epoch_1.pth')
    with pytest.raises(ForgettingError, match="resume from '.*epoch_1.pth', or start again"):
        check_start(cfg)


def test_nothing_to_resume(cfg, tmp_path):
    cfg.work_dir = str(tmp_path / 'new')
    with pytest.raises(ForgettingError, match='no checkpoint in .*new. to resume'):
        check_start(cfg)
    cfg.load_from = str(tmp_path / 'gone.pth')
    with pytest.raises(ForgettingError, match='checkpoint to resume .*gone.pth. does not exist'):
        check_start(cfg)
