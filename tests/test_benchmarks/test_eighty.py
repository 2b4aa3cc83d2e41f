import importlib.util
import sys

import pytest
from mmengine.config import Config, DictAction

from mmgslora.methods import build_method


@pytest.fixture(scope='module')
def eighty(repo_root):
    folder = str(repo_root / 'benchmarks')
    sys.path.insert(0, folder)  # as a script has it
    spec = importlib.util.spec_from_file_location('eighty', f'{folder}/eighty.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(folder)


def test_rows_by_hand(eighty):
    """Forgotten: red circle. blue circle and red square are its neighbours, blue square is not."""
    names = ['red circle', 'blue circle', 'red square', 'blue square']
    task = dict(
        task=1,
        forget=names[:1],
        retain=names[1:],
        old=[],
        missing=[],
        per_class=dict(zip(names, [1.0, 40.0, 45.0, 20.0])),
        metrics=dict(AP_f=1.0, AP_r=35.0, H=41.0),
        zero_group_ratio=0.5,
        steps=9,
        train_seconds=2.0,
        prepare_seconds=1.0,
    )
    before = dict(zip(names, [60.0, 50.0, 50.0, 20.0]))
    (row,) = eighty.task_rows(dict(pretrained=dict(per_class=before), tasks=[task]), 'ours', 10, 3)
    assert row == dict(
        method='ours', sizes=10, seed=3, task=1, AP_f=1.0, AP_r=35.0, AP_o=None, H=41.0,
        pretrained_AP_r=40.0, share_of_ideal=pytest.approx(100 * 41 / 48), zero_group_ratio=0.5,
        hardest_tenth=80.0, neighbours=pytest.approx(85), steps=9, seconds=3.0,
    )  # fmt: skip
    head, _, line = eighty.table([row]).splitlines()
    cells = dict(zip([c.strip() for c in head.split('|')], [c.strip() for c in line.split('|')]))
    assert cells['AP_r kept'] == '87.5%' and cells['AP_o'] == '-' and cells['steps'] == '9'


def test_runs_are_protocols_of_the_config(eighty, repo_root):
    """Each takes as many classes off the end of the order as it says."""
    for _, sizes, config, options in eighty.RUNS.values():
        cfg = Config.fromfile(repo_root / config)
        pairs = (option.split('=', 1) for option in options)
        cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})
        build_method(cfg.model.method.to_dict())  # no setting of another method is left over
        protocol = cfg.train_cfg.protocol
        assert len(protocol.order) == 80 and set(protocol.sizes) == {sizes}
