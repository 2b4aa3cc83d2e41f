import importlib.util

import pytest
from mmengine.config import Config, DictAction

from mmgslora.methods import build_method


@pytest.fixture(scope='module')
def compare(repo_root):
    spec = importlib.util.spec_from_file_location('compare', repo_root / 'benchmarks/compare.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(ap_r):
    return dict(
        pretrained=dict(per_class=dict(a=80.0, b=60.0, c=40.0, d=50.0)),
        tasks=[
            dict(
                task=1,
                forget=['a'],
                retain=['b', 'c'],
                missing=['d'],
                metrics=dict(AP_f=0.5, AP_r=ap_r, AP_m=45.0, H=70.0),
                zero_group_ratio=0.6,
                train_seconds=3.0,
            )
        ],
    )


def test_rows(compare):
    (row,) = compare.rows_of(record(48.0), 'GS-LoRA', '4-shot', 7)
    assert row == dict(
        method='GS-LoRA', setting='4-shot', seed=7, task=1, AP_f=0.5, AP_r=48.0, AP_o=None,
        AP_m=45.0, H=70.0, pretrained_AP_r=50.0, pretrained_AP_m=50.0, zero_group_ratio=0.6,
        train_seconds=3.0,
    )  # fmt: skip


def test_table_has_mean_and_range(compare):
    rows = [compare.rows_of(record(v), 'GS-LoRA', '4-shot', s)[0] for s, v in ((0, 48), (1, 50))]
    head, _, line = compare.table(rows).splitlines()
    cells = dict(zip([c.strip() for c in head.split('|')], [c.strip() for c in line.split('|')]))
    assert cells['AP_r'] == '49.0 (48.0 to 50.0)'
    assert cells['AP_r kept'] == '98.0% (96.0 to 100.0)'
    assert cells['AP_m kept'] == '90.0% (90.0 to 90.0)'
    assert cells['zero groups'] == '0.60 (0.60 to 0.60)'
    assert 'AP_o' not in cells


def test_rows_of_a_run_take_the_place_of_its_earlier_ones(compare):
    def row(method, seed, task, value):
        return dict(method=method, sizes=1, seed=seed, task=task, value=value)

    rows = [row('b', 0, 1, 10), row('a', 0, 1, 11), row('gone', 0, 1, 12), row('b', 1, 1, 13)]
    made = [row('b', 0, 1, 20), row('b', 0, 2, 21)]
    found = compare.replaced(rows, made, [('a', 1), ('b', 1)], 'method', 'sizes')
    assert [(r['method'], r['task'], r['value']) for r in found] == [
        ('a', 1, 11), ('b', 1, 20), ('b', 1, 13), ('b', 2, 21)
    ]  # fmt: skip


def test_studies_name_configs_that_exist(compare, repo_root):
    for config, variants in compare.STUDIES.values():
        assert (repo_root / config).is_file()
        names = [(method, setting) for method, setting, *_ in variants]
        assert len(set(names)) == len(names)


def test_head_only_is_what_is_handed_out(compare):
    """Rows taken away, nothing trained: AP_f of the sealed model, the drop from every query's."""
    untouched = record(50.0)
    untouched['pretrained']['every_query/per_class'] = dict(a=75.0)
    (task,) = untouched['tasks']
    task['per_class'] = dict(a=75.0, b=60.0, c=40.0, d=50.0)
    task['metrics'] = {'AP_f': 75.0, 'AP_r': 50.0, 'sealed/AP_f': 0.0, 'sealed/AP_r': 50.0}
    (row,) = compare.rows_of(untouched, 'head only', '4-shot', 0)
    assert (row['AP_f'], row['AP_r'], row['AP_o'], row['AP_m']) == (0.0, 50.0, None, 50.0)
    assert row['H'] == pytest.approx(2 * 50 * 75 / 125)


TYPES = {
    'GS-LoRA': 'GSLoRA',
    'GS-LoRA++': 'GSLoRAPlusPlus',
    'ours': 'GuidedGSLoRA',
    'retain only': 'RetainOnly',
    'head only': 'HeadOnly',
}


@pytest.mark.parametrize(
    'study', ['few_shot', 'missing', 'ablation', 'default', 'classification', 'face']
)
def test_rows_are_the_method_they_are_called(compare, repo_root, study):
    """Every row's options give a method that can be built, and the same steps as the others'."""
    config, variants = compare.STUDIES[study]
    steps = set()
    for name, _, options, *own in variants:
        cfg = Config.fromfile(repo_root / (*own, config)[0])
        pairs = [option.partition('=')[::2] for option in options]
        cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})
        method = build_method(cfg.model.method)
        assert type(method).__name__ == TYPES[name.partition(',')[0]]
        if name == 'head only':
            assert cfg.train_cfg.seal
            continue
        data, protocol = cfg.train_dataloader.dataset, cfg.train_cfg.protocol
        steps_per_task = cfg.train_cfg.get('steps_per_task')
        settings = (cfg.train_cfg.epochs_per_task, steps_per_task, data.get('few_shot'))
        steps.add((*settings, tuple(protocol.get('missing') or ()), cfg.optim_wrapper.optimizer.lr))
    assert len(steps) == 1
