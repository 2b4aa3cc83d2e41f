"""What a careless or unlucky user does, and the sentence that answers; nothing is written."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from mmgslora.preflight import HUB_KEY
from mmgslora.preflight.checkpoint import first_difference

# Settings: what is given on the command line, and words of the answer.
SETTINGS = {
    'misspelt key of sparsity': ('model.method.sparsity.alfa=0.3', "'alfa' .did you mean 'alpha'"),
    'part that is not there': ('model.tune.exclude=[bakbone]', "exclude has 'bakbone'"),
    'key nobody reads': ('epochs_per_task=3', "'epochs_per_task' is no setting of a run"),
    'misspelt key': ('optim_wraper.optimizer.lr=1', "did you mean 'optim_wrapper'"),
    'negative weight': ('model.method.distill_weight=-1', 'distill_weight is -1'),
    'negative alpha': ('model.method.sparsity.alpha=-1', 'sparsity: alpha is -1; it can be'),
    'select of two': ('model.method.sparsity.select=2', 'select is 2; .* above 0, at most 1'),
    'negative warm-up': ('model.method.sparsity.warmup_epochs=-1', 'warmup_epochs is -1'),
    'dropout in words': ('model.method.dropout=no', "dropout is 'no'; it can be True or False"),
    'no learning rate': ('optim_wrapper.optimizer.lr=0', 'lr is 0; it can be a number above 0'),
    'lr nan': ('optim_wrapper.optimizer.lr=nan', 'lr is nan; it can be a number above 0'),
    'lr negative': ('optim_wrapper.optimizer.lr=-0.1', 'lr is -0.1'),
    'odd batch': ('train_dataloader.batch_size=15', 'batch_size is 15; it can be an even number'),
    'batch of one': ('train_dataloader.batch_size=1', 'batch_size is 1; it can be an even number'),
    'no batch': ('train_dataloader.batch_size=0', 'batch_size is 0; it can be a whole number'),
    'other sampler': ('train_dataloader.sampler.type=DefaultSampler', "needs 'PairedSampler'"),
    'turns in words': ('train_dataloader.sampler.by_class=no', "by_class is 'no'; it can be True"),
    'unknown sampler': ('train_dataloader.sampler.type=Pairs', "type is 'Pairs'"),
    'few_shot=True': ('train_dataloader.dataset.few_shot=True', 'few_shot is True; it can be'),
    'few_shot of zero': ('train_dataloader.dataset.few_shot=0', 'few_shot is 0; it can be'),
    'too few for few_shot': ('train_dataloader.dataset.few_shot=999', 'few_shot asks for 999'),
    'data_ratio': ('train_dataloader.dataset.data_ratio=2', 'data_ratio is 2; .* at most 1'),
    'min_images of zero': ('train_dataloader.dataset.min_images=0', 'min_images is 0; it can be'),
    'key of the views': ('train_dataloader.dataset.ratio=1', "dataset has no setting 'ratio'"),
    'method': ('model.method.type=GSLora', "type is 'GSLora' .did you mean 'GSLoRA'"),
    'argument of the method': ('model.method.betta=1', "method has no setting 'betta'"),
    'warm-up of all epochs': (
        'model.method.sparsity.warmup_epochs=2',
        'warmup_epochs is 2, and alpha counts',
    ),
    'argument of the tuner': ('model.tune.rnak=4', "tune has no setting 'rnak' .did you mean 'ra"),
    'rank of zero': ('model.tune.rank=0', 'rank is 0; it can be a whole number from 1 up'),
    'regex': ('model.tune.target=nothing.*', "'nothing.*' matches no Linear"),
    'key of train_cfg': ('train_cfg.epochs=1', "train_cfg has no setting 'epochs'"),
    'key of the protocol': ('train_cfg.protocol.taks=[[star]]', "no setting 'taks' .did you mean"),
    'half an epoch': ('train_cfg.epochs_per_task=1.5', 'epochs_per_task is 1.5; it can be a whole'),
    'no epoch': ('train_cfg.epochs_per_task=0', 'epochs_per_task is 0; it can be a whole number'),
    'unknown split': ('train_cfg.evaluate_on=tset', "evaluate_on is 'tset'; it can be test or val"),
    'seal': ('train_cfg.seal=maybe', "seal is 'maybe'; it can be True or False"),
    'compiled': ('compile=True', 'compile is True; leave it out'),
    'seed': ('randomness.seed=lucky', "seed is 'lucky'; it can be a whole number"),
    'seed too large': ('randomness.seed=4294967290', 'seed is 4294967290; it can be a whole'),
    'key of the seed': ('randomness.sead=1', "randomness has no setting 'sead'"),
    'seed alone': ('randomness=1', 'randomness is 1; it can be a dict'),
    'beta of Adam': ('optim_wrapper.optimizer.betas=0.9', 'optim_wrapper cannot be built: Type'),
    'rates of parts': (
        'optim_wrapper.paramwise_cfg.bias_lrmult=2',
        "paramwise_cfg has no setting 'bias_lrmult' .did you mean 'bias_lr_mult'",
    ),
    'rate of a part': (
        'optim_wrapper.paramwise_cfg.custom_keys.decoder.lr_mul=2',
        r"custom_keys\['decoder'\] has no setting 'lr_mul' .did you mean 'lr_mult'",
    ),
    'number for a part': (
        'optim_wrapper.paramwise_cfg.custom_keys.nothing=2',
        r"custom_keys\['nothing'\] is 2; it can be a dict",
    ),
    'schedule as text': ('param_scheduler=cosine', r"param_scheduler\[0\] is 'cosine'; it can be"),
    'schedule backwards': ('param_scheduler.0.end=-5', r'param_scheduler\[0\] cannot be built'),
    'cosine of no length': ('param_scheduler.1.T_max=0', 'T_max is 0; it can be a whole number'),
    'key of clipping': ('optim_wrapper.clip_grad.maxnorm=1', "has no setting 'maxnorm'"),
    'norm in words': ('optim_wrapper.clip_grad.norm_type=l2', "norm_type is 'l2'; it can be a num"),
    'key of a loader': ('test_dataloader.numworkers=1', "did you mean 'num_workers'"),
    'half a split': (
        'val_dataloader=None',
        'has no val_dataloader; MMEngine takes val_dataloader,',
    ),
    'no detector': ('model.detector=None', 'detector is None'),
    'unknown detector': ('model.detector.type=DeformableDERT', 'model cannot be built: KeyError'),
    'unknown wrapper': ('model.type=ForgetDetector', "did you mean 'ForgettingDetector'"),
    'no model': ('model=None', 'model is None; a forgetting run needs a dict'),
    'no optimizer': ('optim_wrapper.optimizer=None', 'optimizer is None'),
    'key of the optimizer': ('optim_wrapper.optimizer.weight_deacy=1', "did you mean 'weight_de"),
    'key of a hook': ('default_hooks.checkpoint.max_keep=3', "no setting 'max_keep'"),
    'no checkpoint kept': ('default_hooks.checkpoint.max_keep_ckpts=0', 'max_keep_ckpts is 0'),
    'best of all': ('default_hooks.checkpoint.save_best=mAP', "save_best is 'mAP'; it can be N"),
    'by steps': ('default_hooks.checkpoint.by_epoch=False', 'by_epoch is False; it can be True'),
    'too few classes': (
        'model.detector.bbox_head.num_classes=9',
        'head of the model has 9 classes, the data set 10',
    ),
    'unknown class': ('train_cfg.protocol.tasks=[[cirle]]', "did you mean 'circle'"),
    'class in two tasks': ('train_cfg.protocol.tasks=[[star],[star]]', 'can be forgotten once'),
    'empty task': ('train_cfg.protocol.tasks=[[star],[]]', 'Task 2 of the protocol is empty'),
    'no tasks': ('train_cfg.protocol.tasks=[]', 'has no tasks'),
    'tasks as text': ('train_cfg.protocol.tasks=star', "tasks is 'star'; it can be"),
    'no list per task': ('train_cfg.protocol.tasks=[star]', r'can be .* \(\[\[cat\],\[dog,hor'),
    'other evaluator': ('test_evaluator.type=CocoMetric', "needs 'ForgettingCocoMetric'"),
    'names of its own': ('test_evaluator.prefix=coco', "prefix is 'coco'; leave it out"),
    'evaluator of another file': (
        'test_evaluator.ann_file=no.json',
        "test_evaluator.ann_file is 'n",
    ),
    'request by nobody': ('requests=[dict]', 'requests is'),
    'threshold': ('thresholds.AP_f_max=-1', 'thresholds'),
    'model that is not there': ('load_from=nowhere.pth', "load_from, 'nowhere.pth' does not exist"),
    'no model to start from': ('load_from=None', 'a random one has nothing to forget'),
}


@pytest.mark.parametrize('what', SETTINGS)
def test_settings(command, what):
    option, words = SETTINGS[what]
    refused(command('--cfg-options', option), words)


def test_a_file_of_the_method(command):
    options = 'model.method.type=GSLoRAPlusPlus', 'model.method.prototype_file=none.safetensors'
    words = "'none.safetensors', which the method reads, does not exist"
    refused(command('--cfg-options', *options), words)


def test_a_tuner_that_the_method_cannot_drive(command):
    """Before anything is measured."""
    options = 'model.method.type=UNDO', 'model.method.teacher=forgot.pth', 'model.tune.type=LoRA'
    words = "tune.type is 'LoRA'; UNDO adds noise to .* it can be 'Full'"
    refused(command('--cfg-options', *options), words)


def refused(result, words):
    """One sentence or more, exit code 1, and no file."""
    assert result.code == 1
    lines = result.err.strip().splitlines()
    assert lines and all(line.startswith('error: ') for line in lines)
    assert any(re.search(words, line) for line in lines), result.err
    assert not Path(result.work_dir).exists()


def test_all_is_said_at_once(command):
    options = ('train_cfg.epochs_per_task=0', 'model.method.type=X', 'optim_wrapper.optimizer.lr=0')
    result = command('--cfg-options', *options, 'train_dataloader.batch_size=3')
    assert len(result.err.strip().splitlines()) == 4


def test_a_config_that_can_run(command):
    result = command()
    assert (result.code, result.err) == (0, '') and not result.work_dir.exists()
    assert 'can run' in result.out


@pytest.mark.parametrize('name', ['MethodHook', 'AdapterHook', 'RecordHook'])
def test_a_hook_left_out(command, cfg, name):
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != name]
    refused(command(), f'custom_hooks lacks {name}, ')


def test_no_hooks(command, cfg):
    cfg.custom_hooks = []
    refused(command(), 'custom_hooks lacks MethodHook, AdapterHook, RecordHook')


def test_checkpoints_of_no_interval_are_refused_in_one_sentence(command):
    """The disk that they would take is not worked out."""
    result = command('--cfg-options', 'default_hooks.checkpoint.interval=0')
    refused(result, 'interval is 0; it can be a whole number from 1 up')
    assert len(result.err.strip().splitlines()) == 1


def test_checkpoints_far_apart_are_worth_a_note(command, cfg):
    cfg.default_hooks.checkpoint.interval = 10
    result = command()
    assert result.code == 0 and 'checkpoint.interval is 10: a run that is killed' in result.out


def test_steps_that_the_epochs_do_not_share_are_worth_a_note(command, cfg):
    cfg.train_cfg.update(epochs_per_task=3, steps_per_task=11)
    result = command()
    assert result.code == 0
    assert 'steps_per_task is 11: 3 epochs of 3 steps are 9, and no more are' in result.out
    cfg.train_cfg.steps_per_task = 12
    assert 'steps_per_task' not in command().out


def test_workers_that_do_not_persist_are_worth_a_note(command, cfg):
    cfg.train_dataloader.persistent_workers = False
    assert 'persistent_workers' not in command().out
    cfg.train_dataloader.persistent_workers = True
    result = command()
    said = 'note: train_dataloader.persistent_workers is taken as False: workers that outlive an'
    assert result.code == 0 and result.out.count(said) == 1


def test_a_key_of_no_parameter_is_worth_a_note(command, cfg):
    keys = {'decoder.layers.1': dict(lr_mult=0.5), 'decodre': dict(lr_mult=0.1)}
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    result = command()
    assert result.code == 0 and result.out.count('custom_keys has') == 1
    assert "custom_keys has 'decodre', which is in no name of a parameter" in result.out


def test_an_average_that_would_not_be_saved(command, cfg):
    cfg.custom_hooks.append(dict(type='EMAHook'))
    refused(command(), 'EMAHook would have its average measured .* take AveragingHook')


def test_a_data_set_that_wraps_another(command, cfg):
    views = cfg.train_dataloader.dataset
    views.dataset = dict(type='RepeatDataset', times=3, dataset=views.dataset)
    refused(command(), 'is a RepeatDataset, which wraps others; give the innermost data set')


def test_a_data_set_of_several(command, cfg):
    """None of them is the innermost one."""
    views = cfg.train_dataloader.dataset
    views.dataset = dict(type='ConcatDataset', datasets=[views.dataset, views.dataset])
    refused(command(), 'is a ConcatDataset of 2; give one data set: one annotation file that lists')


def test_no_sampler(command, cfg):
    del cfg.train_dataloader['sampler']
    refused(command(), 'train_dataloader has no sampler; give it a PairedSampler')


def test_a_filter_that_leaves_no_image(command, cfg):
    cfg.train_dataloader.dataset.dataset.filter_cfg = dict(min_size=65)  # images of 64 pixels
    refused(command(), 'train_dataloader.dataset cannot be built: of its images none is left, by')


def test_a_training_checkpoint_of_a_forgetting_run_is_no_original(
    command, cfg, random_checkpoint, tmp_path
):
    """What it had forgotten would be among the classes that stay, and be trained again."""
    content = torch.load(random_checkpoint)
    cfg.load_from = str(tmp_path / 'epoch_2.pth')
    content['message_hub'] = dict(runtime_info={HUB_KEY: dict(tasks=[['ring']], forgotten=[])})
    torch.save(content, cfg.load_from)
    refused(command(), "epoch_2.pth' is a training checkpoint of a forgetting run")


def test_images_that_are_measured_and_not_shown(command, cfg, shapes_root):
    """Half of the objects would be missed: a low AP of the forgotten classes would say nothing."""
    content = json.loads((shapes_root / 'annotations/val.json').read_text())
    left = {item['image_id'] for item in content['annotations']} - set(range(1, 7))
    cfg.test_dataloader.dataset.indices = 6
    words = f'test_dataloader leaves out {len(left)} of the 12 images of .*val.json'
    refused(command(), words)
    del cfg.test_evaluator['ann_file']  # it then counts what the data set has
    assert command().code == 0


def test_a_task_whose_images_fill_no_batch(command, cfg):
    """It would be measured, merged and recorded as forgotten, and nothing had been trained."""
    cfg.train_dataloader.update(batch_size=64, drop_last=True)  # of 40 images
    result = command(name='train')
    assert result.code == 1 and not list(result.work_dir.glob('*.pth'))
    assert 'Task 1 would have no step: its images do not fill a batch' in result.err


def test_images_that_are_measured_as_one(command, cfg):
    """Two files number their images from 1: the detections of one would miss what the other has."""
    dataset = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    del cfg.test_evaluator['ann_file']
    refused(command(), 'test_dataloader has 12 image ids more than once, the first is 1, and test')


def test_several_processes_without_what_held_groups_need(command, cfg):
    cfg.launcher = 'pytorch'
    cfg.find_unused_parameters = False
    refused(command(), "launcher is 'pytorch' and find_unused_parameters is not set: the first")
    cfg.find_unused_parameters = True
    assert command().code == 0


def test_data_to_measure_on_of_fewer_classes(command, cfg):
    dataset = cfg.test_dataloader.dataset
    names = json.loads(Path(dataset.data_root, dataset.ann_file).read_text())['categories']
    kept = tuple(category['name'] for category in names[:-1])
    dataset.update(type='CocoDataset', metainfo=dict(classes=kept))
    dataset.pop('generate')
    refused(command(), 'test_dataloader.dataset has 9 classes, train_dataloader.dataset 10; both')


def test_where_lists_of_classes_differ():
    assert first_difference(['a', 'b'], ('a', 'b')) is None
    assert first_difference(['a'], ['a', 'b']) == ('1 class', '2')
    assert first_difference(['a', 'b', 'c'], ['a', 'c', 'b']) == ("'b' as class 1", "'c'")


def test_a_name_that_a_config_sets_to_no_effect(command, cfg, tmp_path):
    cfg.dump(tmp_path / 'base.py')
    config = tmp_path / 'mine.py'
    config.write_text("_base_ = './base.py'\ndata_root = 'elsewhere'\n")
    refused(command(config=config), "sets 'data_root', which nothing reads")
    config.write_text("_base_ = './base.py'\nname = 'test'\ntrain_cfg = dict(evaluate_on=name)\n")
    assert command(config=config).code == 0


def test_what_mmengine_alone_reads_for_several_processes(command, cfg, tmp_path):
    cfg.dump(tmp_path / 'base.py')
    config = tmp_path / 'mine.py'
    wrapper = "dict(type='MMDistributedDataParallel', find_unused_parameters=True)"
    lines = ["_base_ = './base.py'", 'find_unused_parameters = True', "sync_bn = 'torch'"]
    config.write_text('\n'.join([*lines, f'model_wrapper_cfg = {wrapper}', '']))
    assert command(config=config).code == 0
    assert command('--cfg-options', 'find_unused_parameters=True').code == 0


CONFIGS = {
    'syntax': ('model = dict(', 'cannot be read'),
    'empty': ('', 'is empty'),
    'base': ("_base_ = './gone.py'", 'cannot be read: FileNotFoundError'),
    'no run': ("model = dict(type='DETR')", 'is no forgetting run'),
    'error': ('a = 1 / 0', 'ZeroDivisionError'),
}


@pytest.mark.parametrize('what', CONFIGS)
def test_configs(command, tmp_path, what):
    text, words = CONFIGS[what]
    (tmp_path / 'bad.py').write_text(text)
    refused(command(config=tmp_path / 'bad.py'), words)


def test_configs_of_other_kinds(command, tmp_path):
    (tmp_path / 'bad.yaml').write_text('a: [1')
    refused(command(config=tmp_path / 'bad.yaml'), 'cannot be read')
    refused(command(config=tmp_path / 'none.py'), "none.py' does not exist")
    (tmp_path / 'text.txt').write_text('hello')
    refused(command(config=tmp_path / 'text.txt'), 'cannot be read')


@pytest.mark.parametrize('option', ['foo', '=1', 'load_from=[(1,2'])
def test_options_that_are_none(command, option):
    result = command('--cfg-options', option)
    assert result.code == 2 and '--cfg-options' in result.err


def test_an_option_inside_a_number(command):
    refused(command('--cfg-options', 'load_from.a.b=1'), '--cfg-options do not fit')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_mixed_precision_without_a_gpu(command):
    refused(
        command('--amp', name='train'),
        "optim_wrapper.type is 'AmpOptimWrapper' .*, which needs a GPU",
    )


# Data: a change of an annotation file, and words of the answer.
def _without_annotations(content):
    del content['annotations']


def _without_circles(content):
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] > 2]


def _swapped(content):
    content['categories'][:2] = content['categories'][1::-1]


def _broken(image):
    def change(content):
        content['images'][0]['file_name'] = image

    return change


DATA = {
    'category renamed': (lambda c: c['categories'][0].update(name='disc'), "no category 'circle'"),
    'category missing': (lambda c: c['categories'].pop(0), "no category 'circle'"),
    'other order': (_swapped, "category 'square' where metainfo.classes has 'circle'"),
    'two of one name': (lambda c: c['categories'][1].update(name='circle'), "name 'circle'"),
    'no annotations': (_without_annotations, "no list 'annotations'"),
    'no images': (lambda c: c['images'].clear(), 'has no images'),
    'no object to forget': (_without_circles, 'circle'),
    'image missing': (_broken('no.png'), "1 of the .* images .* missing.*'no.png'"),
    'id twice': (
        lambda c: c['annotations'][0].update(id=c['annotations'][1]['id']),
        'id .* twice|more than once',
    ),
}


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('what', DATA)
def test_data(command, cfg, tmp_path, shapes_root, what, split):
    change, words = DATA[what]
    content = json.loads(
        (shapes_root / f'annotations/{"train" if split == "train" else "val"}.json').read_text()
    )
    change(content)
    use(cfg, split, tmp_path / 'changed.json', json.dumps(content))
    refused(command(), words)


@pytest.mark.parametrize('text', ['', '[]', '{"images": ['])
def test_annotation_files_that_are_none(command, cfg, tmp_path, text):
    use(cfg, 'train', tmp_path / 'changed.json', text)
    refused(command(), "changed.json' cannot be read as COCO JSON")


def use(cfg, split, file, text):
    """Take another annotation file for a split."""
    file.write_text(text)
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.get('dataset', dataset).ann_file = str(file)
    if split != 'train':
        cfg[f'{split}_evaluator'].ann_file = str(file)


def test_paths_that_are_not_there(command, cfg):
    dataset = cfg.train_dataloader.dataset.dataset
    dataset.update(type='CocoDataset', ann_file='no.json', data_prefix=dict(img='no/'))
    dataset.pop('generate')
    result = command()
    refused(result, "no.json' does not exist")
    refused(result, "Image folder '.*no' does not exist")


@pytest.fixture
def own_images(cfg, tmp_path, shapes_root):
    """The folder of a copy of the data, which the config takes."""
    folder = tmp_path / 'shapes'
    shutil.copytree(shapes_root, folder)
    for loader in (cfg.train_dataloader.dataset, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{folder}/'
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{folder}/annotations/val.json'
    return folder


@pytest.mark.parametrize('content', ['cut', 'empty', 'text'])
def test_images_that_cannot_be_read(command, own_images, content):
    image = own_images / 'train/000003.png'
    image.write_bytes({'cut': image.read_bytes()[:60], 'empty': b'', 'text': b'hello'}[content])
    refused(command('--check-data'), '000003.png')


@pytest.mark.parametrize(('split', 'workers'), [('train', 0), ('train', 1), ('val', 0)])
def test_an_image_that_fails_in_the_middle_of_a_run(command, own_images, cfg, split, workers):
    """Without --check-data it is found when it is needed, and named, by a worker process too."""
    cfg.train_dataloader.num_workers = workers
    for image in (own_images / split).iterdir():
        image.write_bytes(b'hello')
    cfg.train_cfg.epochs_per_task = 1
    if split == 'train':
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'ImageHook']
    result = command(name='train')
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if line.startswith('error: ')]
    assert any(f'shapes/{split}/' in line for line in lines), result.err
    if split == 'train':
        (line,) = lines
        assert 'Task 1, epoch 1, iteration 1: Image ' in line


# Checkpoints: how one is broken, and words of the answer.
def _nan(path):
    checkpoint = torch.load(path)
    next(iter(checkpoint['state_dict'].values())).fill_(float('nan'))
    torch.save(checkpoint, path)


def _of_classes(path):
    checkpoint = torch.load(path)
    checkpoint['meta'] = dict(dataset_meta=dict(classes=list('abcdefghij')))
    torch.save(checkpoint, path)


def _other_shape(path):
    checkpoint = torch.load(path)
    name = next(iter(checkpoint['state_dict']))
    checkpoint['state_dict'][name] = torch.zeros(3)
    torch.save(checkpoint, path)


def _folder(path):
    path.unlink()
    path.mkdir()


def _as_others_save(path):
    state = torch.load(path)['state_dict']
    optimizer = dict(state={0: dict(step=torch.ones(1))}, param_groups=[])
    torch.save(dict(model=state, optimizer=optimizer, model_ema=state, epoch=9), path)


CHECKPOINTS = {
    'of other scripts': (_as_others_save, "holds weights under 'model', 'model_ema', where"),
    'cut off': (lambda p: p.write_bytes(p.read_bytes()[:1000]), 'is cut off or no checkpoint'),
    'text': (lambda p: p.write_text('hello'), 'is cut off or no checkpoint'),
    'empty': (lambda p: p.write_bytes(b''), 'is cut off or no checkpoint'),
    'folder': (_folder, 'is a folder'),
    'a list': (lambda p: torch.save([1], p), 'holds a list'),
    'nan': (_nan, 'NaN or infinite values in 1 weights'),
    'classes': (_of_classes, "'a' as class 0, the data set 'circle'"),
    'shape': (_other_shape, 'in the checkpoint and'),
}


@pytest.mark.parametrize('what', CHECKPOINTS)
def test_checkpoints(command, cfg, tmp_path, random_checkpoint, what):
    change, words = CHECKPOINTS[what]
    path = tmp_path / 'start.pth'
    shutil.copy(random_checkpoint, path)
    change(path)
    cfg.load_from = str(path)
    refused(command(), words)


def test_a_model_that_has_forgotten_already(command, cfg, tmp_path):
    checkpoint = torch.load(cfg.load_from)
    checkpoint['meta'] = dict(forgotten=['heart'])
    cfg.load_from = str(tmp_path / 'start.pth')
    torch.save(checkpoint, cfg.load_from)
    result = command()
    assert result.code == 0 and 'note: The model to start from has forgotten heart' in result.out
    checkpoint['meta'] = dict(forgotten=['star'])
    torch.save(checkpoint, cfg.load_from)
    refused(command(), "'star' is in task 2, but the model to start from has forgotten it")


def test_a_work_dir_that_is_a_file(command, tmp_path):
    (tmp_path / 'file').write_text('')
    result = command(work_dir=tmp_path / 'file')
    assert result.code == 1 and "file' is a file; give a folder" in result.err


def test_a_disk_that_is_full(command, monkeypatch):
    usage = shutil.disk_usage('.')._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
    refused(command(), 'has 0.0 GB free')


@pytest.mark.parametrize('task', ['0', '3', '-1'])
def test_testing_a_task_that_is_not_there(command, cfg, task):
    result = command(cfg.load_from, f'--task={task}', name='test')
    assert result.code == 1 and f'Task {task} does not exist; there are 1 to 2' in result.err


def test_testing_without_the_file(command, tmp_path):
    refused(command(tmp_path / 'no.pth', name='test'), "no.pth' does not exist")
    refused(command(tmp_path / 'no.pkl', '--forget-eval', name='test'), "no.pkl' does not exist")
