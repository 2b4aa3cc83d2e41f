"""Settings broken at random: never an exception of Python, never an all-clear."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict

from mmgslora.preflight import examine

BROKEN = {
    'model.method.distill_weight': -1,
    'model.method.sparsity': dict(alfa=1),
    'model.method.type': 'Unknown',
    'model.detector': None,
    'model.tune': dict(rank=0),
    'optim_wrapper.optimizer.lr': float('nan'),
    'optim_wrapper.optimizer.type': 'Adammm',
    'optim_wrapper': None,
    'train_dataloader.batch_size': 3,
    'train_dataloader.sampler': dict(type='DefaultSampler'),
    'train_dataloader.dataset.min_images': 0,
    'train_dataloader.dataset.few_shot': True,
    'train_dataloader.dataset.dataset.ann_file': 'nowhere.json',
    'train_cfg.epochs_per_task': 1.5,
    'train_cfg.evaluate_on': None,
    'train_cfg.protocol': dict(tasks=[['nothing']]),
    'train_cfg.unknown': 1,
    'test_evaluator.type': 'CocoMetric',
    'test_dataloader': None,
    'custom_hooks': [],
    'default_hooks.checkpoint.interval': 0,
    'randomness.seed': 'x',
    'load_from': 'nowhere.pth',
    'requests': 'mine',
    'thresholds': dict(nothing=1),
}
FEW = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def put(cfg, path, value):
    """Set a key whatever lies on the way."""
    *way, last = path.split('.')
    place = cfg
    for part in way:
        if not isinstance(place.get(part), dict):
            return
        place = place[part]
    place[last] = copy.deepcopy(value)


@FEW
@given(broken=st.sets(st.sampled_from(sorted(BROKEN)), min_size=1, max_size=6))
def test_broken_settings_are_refused(cfg, tmp_path_factory, broken):
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(tmp_path_factory.getbasetemp() / 'not_made')
    for path in broken:
        put(cfg, path, BROKEN[path])
    plan = examine(cfg)
    assert plan.sentences and not plan.work_dir.exists()
    assert all('\n' not in sentence for sentence in plan.sentences)
    assert not any('cannot be checked' in sentence for sentence in plan.sentences)


def paths(node, way=()):
    """Every key of a config."""
    for key, value in node.items():
        yield '.'.join((*way, key))
        if isinstance(value, ConfigDict):
            yield from paths(value, (*way, key))


JUNK = st.sampled_from(
    [None, -1, 0, 1.5, float('nan'), 'text', '', [], ['a', 1], {}, dict(b=1), True]
)


@FEW
@given(data=st.data())
def test_junk_anywhere_is_survived(cfg, tmp_path_factory, data):
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(tmp_path_factory.getbasetemp() / 'not_made')
    known = [path for path in paths(cfg._cfg_dict) if path not in ('work_dir', 'default_scope')]
    for path in data.draw(st.sets(st.sampled_from(known), min_size=1, max_size=3)):
        put(cfg, path, data.draw(JUNK))
    plan = examine(cfg)
    assert all(isinstance(sentence, str) for sentence in plan.sentences)
    assert not plan.work_dir.exists()


@pytest.mark.parametrize('path', BROKEN)
def test_each_of_them_is_broken(cfg, tmp_path, path):
    """Else the first property would show less than it seems to."""
    cfg.work_dir = str(tmp_path / 'run')
    put(cfg, path, BROKEN[path])
    assert examine(cfg).sentences
