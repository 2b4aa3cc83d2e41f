import copy
import cProfile
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

needs_watched_storages = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 3),
    reason='storages of older torch cannot be watched',
)


@pytest.fixture(scope='module')
def bench(repo_root):
    """The modules of the benchmark by name."""
    pytest.importorskip('peft')
    sys.path.insert(0, str(repo_root / 'benchmarks'))
    names = ('stopwatch', 'contenders', 'race', 'subjects', 'speed')
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(repo_root / 'benchmarks'))


class Clock:
    """Says what it is told to."""

    def __init__(self):
        self.at = 0.0

    def __call__(self):
        return self.at

    def passes(self, seconds):
        self.at += seconds


def test_time_belongs_to_the_innermost_part(bench):
    """1 s outside; in the layer 1.5 s and 0.5 s of matching; without gradient it is a teacher."""
    clock = Clock()
    parts = bench['stopwatch'].Parts(clock)

    class Assigner:
        def assign(self):
            clock.passes(0.5)

    class Layer(nn.Module):
        def forward(self, seconds):
            clock.passes(seconds)
            assigner.assign()

    layer, assigner = Layer(), Assigner()
    parts.watch(layer, 'decoder', without_grad='teacher')
    parts.watch(None, 'never')
    for name in (
        'assign',
        'assign',
        'missing',
    ):  # once; nothing for what is not there
        parts.wrap(assigner, name, 'matching')
    with parts.running():
        clock.passes(1)
        layer(1.5)
        with torch.no_grad():
            layer(3)
    parts.unwrap()
    assert not vars(assigner)
    layer(7)
    assert parts.seconds == dict(other=1.0, decoder=1.5, teacher=3.0, matching=1.0)


def test_profile_counts_what_a_file_calls_once(bench, tmp_path):
    """Of two files only the one with the word in its name counts, with what it calls."""
    code = 'import time\ndef inner():\n    time.sleep(0.02)\ndef outer():\n    inner()\n'
    scopes = {}
    for name in ('group_sparsity.py', 'others.py'):
        scopes[name] = {}
        exec(compile(code, str(tmp_path / name), 'exec'), scopes[name])

    def step():
        for scope in scopes.values():
            scope['outer']()

    profile = cProfile.Profile()
    with profile:
        step()
    found = bench['stopwatch'].seconds_in(profile, 'sparsity')
    assert 0.02 <= found < 0.04  # once, though outer and inner both lie in the file
    assert bench['stopwatch'].seconds_in(profile, 'nothing') == 0


@needs_watched_storages
def test_tensor_memory_is_what_autograd_keeps(bench):
    """y = relu(x W): x and W given, then h, relu(h) kept for backward, then gradients."""
    x, w = torch.randn(8, 16), torch.randn(16, 32, requires_grad=True)
    given, hidden, weight = 8 * 16 * 4, 8 * 32 * 4, 16 * 32 * 4
    with bench['stopwatch'].TensorMemory([x, w, w.detach()]) as memory:
        assert memory.live == given + weight  # a view is no tensor more
        y = (x @ w).relu()  # the product itself is gone
        assert memory.live == given + weight + hidden
        assert memory.peak == given + weight + 2 * hidden
        z = y.exp()
        del y  # autograd holds it, for relu's gradient
        assert memory.live == given + weight + 2 * hidden
        z.sum().backward()
        del z
        assert memory.live == given + 2 * weight  # the gradient of W is left


def test_over_request_is_the_mean_of_medians(bench):
    seconds = [3, 3, 90, 1, 1, 1, 2, 0, 2]  # medians 3, 1, 2: the outlier does not count
    assert bench['race'].over_request(seconds, pieces=3) == 2
    assert bench['race'].over_request([5.0, 1.0]) == 3
    ratio = bench['race'].step_ratio(dict(ours=[1.0, 1, 1], peft=[4.0, 4, 4]), 'peft')
    assert ratio == 0.25


@pytest.fixture
def batch(run_cfg):
    """Two images of each view, as the loader of a run makes them."""
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    from mmgslora.datasets import Protocol

    views = DATASETS.build(run_cfg.train_dataloader.dataset)
    protocol = Protocol(views.classes, **run_cfg.train_cfg.protocol)
    views.set_partition(protocol.partition(1))
    return pseudo_collate([views[i] for i in (0, views.num_forget, 1, views.num_forget + 1)])


def moved(contender, batch):
    """Names of the parameters that a step changes."""
    before = {name: p.detach().clone() for name, p in contender.model.named_parameters()}
    contender.step(copy.deepcopy(batch))
    return {n for n, p in contender.model.named_parameters() if not torch.equal(p, before[n])}


def test_contenders_train_what_they_say(bench, run_cfg, batch):
    contenders = bench['contenders']
    everything = moved(contenders.Finetuning(run_cfg), batch)
    assert any('backbone' in name for name in everything) and len(everything) > 50
    for kind in (contenders.Peft, contenders.AuthorsWay):
        contender = kind(run_cfg)
        moved(contender, batch)  # B is zero at first, and A has no gradient
        names = moved(contender, batch)
        assert names and all('lora_' in name for name in names)
        assert len(names) == 2 * 2 * (1 + 2)  # A, B of two linears of an encoder, two decoders


def test_authors_way_is_two_passes(bench, run_cfg, batch):
    """The retain losses of its loss are those of the retain half alone, all decoder layers."""
    contender = bench['contenders'].AuthorsWay(run_cfg)
    losses = contender._losses(copy.deepcopy(batch), 'retain')
    assert len(losses) == 3 * 2  # three terms, two decoder layers
    rows = [1, 3]
    half = {key: [values[i] for i in rows] for key, values in copy.deepcopy(batch).items()}
    data = contender.model.data_preprocessor(half, True)
    expected = contender.model.loss(data['inputs'], data['data_samples'])
    assert sum(losses.values()).item() == pytest.approx(sum(expected.values()).item(), rel=1e-5)


@needs_watched_storages
def test_steps_take_turns(bench, monkeypatch):
    """Loading takes 1 s, a step of ours 2 s, a contender's 5 s; two tasks of six steps."""
    race, clock = bench['race'], Clock()
    monkeypatch.setattr(race, 'now', clock)
    layer, batches = nn.Linear(2, 2), []

    class OptimWrapper:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

        def zero_grad(self, seconds):
            clock.passes(seconds)

    def step(batch):
        batches.append(batch)
        clock.passes(5)

    plain = nn.ModuleDict(dict(backbone=nn.Identity(), head=nn.Identity()))
    loop = SimpleNamespace(model=SimpleNamespace(plain_model=plain, method=None))
    runner = SimpleNamespace(train_loop=loop, optim_wrapper=OptimWrapper())
    other = SimpleNamespace(model=layer, optim_wrapper=OptimWrapper(), step=step)
    hook = race.Race(dict(other=other), every=5)
    hook.parts._clock = clock
    for _ in range(2):
        hook.before_forget_task(runner)
        hook.before_train_epoch(runner)
        for number in range(6):
            clock.passes(1)
            hook.before_train_iter(runner, number, batch := [number])
            batch.append('changed by the step')
            runner.optim_wrapper.zero_grad(1.5)
            clock.passes(0.5)
            hook.after_train_iter(runner, number, batch)
    # Races: the first and the last step of the first task, the fifth of the second.
    assert hook.tasks[0] == dict(data=[1, 1], ours=[2, 2], other=[5, 5])
    assert hook.tasks[1] == dict(data=[1], ours=[2], other=[5])
    # Each as it was loaded; the fourth of five steps is weighed.
    assert batches == [[0], [3], [5], [2], [4]]
    assert hook.parts.seconds == dict(data=3, optimizer=4.5, other=1.5)
    assert hook.sparsity == [0, 2 * 2]
    # A weight of 2 x 2 and a bias of 2 numbers are all that the contender has.
    assert hook.peak['other'] == 4 * 6


@needs_watched_storages
def test_all_numbers_of_a_subject(bench, run_cfg, tmp_path):
    """On the tiny detector: everything is measured but the long sequence."""

    class Tiny(bench['subjects'].Subject):
        def load(self, folder):
            return copy.deepcopy(run_cfg)

    tiny = Tiny('', 'configs/shapes/deformable-detr_shapes.py', (30, 0.1))
    found = bench['speed'].measure('tiny', tiny, tmp_path, every=4)
    ratios = found['ratios']
    assert set(ratios) == set(bench['speed'].LIMITS)
    assert ratios.pop('task20_vs_task1') is None
    # Positive and a number; how large is the machine's, on a model of this size.
    assert all(0 < value < float('inf') for value in ratios.values()), ratios
    assert ratios['sparsity_share_of_step'] < 1
    assert len(found['requests']['seconds']) == 2
    for whole, part in zip(*found['requests'].values()):
        assert 0 < part < whole
    mean = sum(found['requests']['seconds']) / 2
    assert found['seconds_per_request'] == pytest.approx(mean)
    # Not the trunk: its features may all be kept.
    for part in ('data', 'decoder', 'matching', 'backward', 'optimizer'):
        assert found['parts'][part] > 0, part
    assert sum(found['parts'].values()) == pytest.approx(1)
    names = {'ours', 'ours between steps', 'reference', 'finetune', 'peft'}
    assert found['peak_bytes'].keys() == names
    assert found['peak_bytes']['ours between steps'] < found['peak_bytes']['ours']
    # Weights, gradients, two moments and images at least.
    plain = sum(p.numel() for p in bench['contenders'].plain_model(run_cfg).parameters())
    assert found['peak_bytes']['finetune'] > 4 * 4 * plain


def test_last_over_first_in_steps_of_finetuning(bench, monkeypatch, tmp_path):
    """The machine is half as fast in the end; ours grew from 0.5 to 0.55 of fine-tuning."""
    first, last = dict(ours=[1.0], finetune=[2.0]), dict(ours=[2.2], finetune=[4.0])
    race = SimpleNamespace(tasks=[first, dict(ours=[9.0], finetune=[1.0]), last])
    monkeypatch.setattr(bench['speed'], 'run_race', lambda *_: (None, race))
    assert bench['speed'].last_over_first(tmp_path) == pytest.approx(1.1)


def test_request_clock(bench):
    """Evaluation of the original 2 s; request of 5 s with 1 s of evaluation; then one of 3 s."""
    race, clock = bench['race'], Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, 'now', clock)
        hook = race.RequestClock()
        for seconds, evaluation in ((0, 2), (4, 1), (2.5, 0.5)):
            clock.passes(seconds)
            hook.before_test_epoch(None)
            clock.passes(evaluation)
            hook.after_test_epoch(None)
            if seconds:
                hook.after_forget_task(None, {})
    assert hook.seconds == [5, 3] and hook.evaluation == [1, 0.5]


def numbers(value, parts):
    ratios = dict.fromkeys(
        ('step_vs_reference', 'step_vs_finetune', 'step_vs_peft', 'memory_vs_finetune',
         'request_vs_retrain', 'request_vs_paper', 'task20_vs_task1', 'merged_vs_original',
         'sparsity_share_of_step'), value)  # fmt: skip
    seconds = dict(ours=0.1, reference=0.3, finetune=0.4, peft=0.2, data=0.05)
    peak = dict.fromkeys(seconds, 3 * 2**20)
    return dict(
        ratios=ratios, seconds_per_request=value, step_seconds=seconds, peak_bytes=peak,
        batch_size=16, request_steps=90, zero_group_ratio=0.8, parts=dict.fromkeys(parts, 0.1),
    )  # fmt: skip


def test_tables_and_plot(bench, tmp_path):
    speed = bench['speed']
    found = {'small detector': numbers(0.45, speed.PARTS), 'classifier': numbers(None, speed.PARTS)}
    table = speed.ratio_table(found)
    assert '| `step_vs_reference` | 0.45 |  | 0.5 |' in table
    assert '| `step_vs_finetune` | **0.45** |  | 0.4, 0.5 |' in table  # over what it may be
    assert '| small detector | 100 ms, 3 MB | 300 ms, 3 MB |' in speed.step_table(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, 'PLOT', tmp_path / 'parts.png')
        speed.plot(found)
    assert (tmp_path / 'parts.png').stat().st_size > 1000


def test_subjects_are_configs_that_exist(bench, repo_root, tmp_path):
    """And the random ones build: data, checkpoint, classes of the protocol."""
    from mmgslora.preflight import prepare as check_start

    subjects = bench['subjects']
    for subject in subjects.SUBJECTS.values():
        assert (repo_root / subject.config).is_file()
        assert subject.plain is None or subject.retraining_epochs == 12
    cfg = subjects.SEQUENCE.load(tmp_path)
    cfg.work_dir = str(tmp_path / 'run')
    check_start(cfg)
    assert len(cfg.train_cfg.protocol.tasks) == 20
    assert Path(cfg.load_from).is_file()
