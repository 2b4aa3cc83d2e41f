"""The hook calls a method at its moments, and what it must remember survives a kill."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner

from mmgslora.engine.method_hook import MethodHook
from mmgslora.methods import METHODS, Context, RetainOnly

from .stopped import whole_and_resumed


@METHODS.register_module(force=True)
class Diary(RetainOnly):
    """Writes down when it is called."""

    lines = []

    def note(self, moment, context):
        Diary.lines.append((moment, context.task.number, context.epoch, context.step))

    def before_task(self, context):
        assert len(context.loader) and context.optimizer.param_groups and context.work_dir.exists()
        self.note('before_task', context)

    def prepare(self, samples, context):
        self.note('prepare', context)
        return samples

    def before_step(self, context):
        assert any(p.grad is not None for p in context.model.parameters())
        self.note('before_step', context)

    def after_step(self, context):
        self.note('after_step', context)

    def after_task(self, context):
        self.note('after_task', context)

    def summary(self):
        return dict(note='written')


def test_every_moment_in_its_order(run_cfg):
    run_cfg.model.method = dict(type='Diary')
    run_cfg.default_hooks.checkpoint = None
    Diary.lines.clear()
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    loop = runner.train_loop
    expected = []
    for task, steps in enumerate(loop.steps_per_task, 1):
        batches = steps // 2
        expected.append(('before_task', task, 0, 0))
        for step in range(steps):
            moment = (task, step // batches, step)
            expected += [(name, *moment) for name in ('prepare', 'before_step', 'after_step')]
        expected.append(('after_task', task, 1, steps - 1))
    assert Diary.lines == expected
    assert runner.message_hub.get_info('method_summary') == dict(note='written')
    assert runner.message_hub.get_info('prepare_seconds') > 0


def test_what_a_method_draws_is_its_own_in_every_epoch():
    """Of the same moment it is the same; so are the numbers that a method reads of it."""

    def at(seed, epoch):
        context = Context(None, None)
        loop = SimpleNamespace(model=SimpleNamespace(context=context), dataloader=['a', 'b'])
        loop.epoch, loop.epoch_in_task, loop.task, loop.steps_per_task = epoch, epoch % 3, 2, [6, 8]
        wrapper = SimpleNamespace(optimizer='of the task')
        runner = SimpleNamespace(train_loop=loop, optim_wrapper=wrapper, work_dir='x', seed=seed)
        found = MethodHook._context(runner)
        assert (found.epoch, found.steps, found.seed) == (epoch % 3, 8, seed or 0)
        assert (found.optimizer, found.loader) == ('of the task', ['a', 'b'])
        return torch.rand((), generator=found.generator).item()

    assert len({at(0, 3), at(0, 4), at(0, 6), at(1, 3)}) == 4 and at(0, 4) == at(0, 4)
    assert at(None, 3) == at(0, 3)


@pytest.mark.skipif(torch.__version__ < (2, 4), reason='no fused AdamW on a CPU')
@pytest.mark.parametrize('fused', [False, True])
def test_a_step_that_overflowed_is_none(fused):
    """GradScaler calls a fused optimizer with an infinite gradient, and tells it to do nothing."""
    layer, called = torch.nn.Linear(1, 1), []
    method = SimpleNamespace(
        before_step=lambda _: called.append('before'), after_step=lambda _: called.append('after')
    )
    model = SimpleNamespace(
        method=method, tune=SimpleNamespace(check_gradients=lambda: called.append('checked'))
    )
    optimizer = torch.optim.AdamW(layer.parameters(), fused=fused)
    hook = MethodHook()
    hook._context, hook._learns = lambda _: None, False
    hook.before_train_epoch(
        SimpleNamespace(
            train_loop=SimpleNamespace(model=model),
            optim_wrapper=SimpleNamespace(optimizer=optimizer),
        )
    )
    scaler = torch.amp.GradScaler('cpu')
    for value, expected in ((float('inf'), []), (1.0, ['checked', 'before', 'after'])):
        scaler.scale(layer(torch.tensor([[value]])).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert called == expected


WITH_PROTOTYPES = dict(type='GSLoRAPlusPlus', prototypes='embeddings', feature_pull_weight=0.5)


@pytest.mark.parametrize(
    'method', [dict(type='GuidedGSLoRA'), WITH_PROTOTYPES], ids=['ours', 'prototypes']
)
def test_a_whole_run_killed_and_resumed(run_cfg, method):
    """On the tiny detector; stopped in task 2, it goes on with the same prototypes."""
    run_cfg.model.method = method
    run_cfg.train_dataloader.dataset.update(few_shot=2)
    run_cfg.custom_hooks.append(dict(type='AveragingHook'))

    whole, parts = whole_and_resumed(run_cfg, stop=3)
    if method == WITH_PROTOTYPES:
        before, after = (run.train_loop.model.method.parts[1].values for run in (whole, parts))
        assert after.shape == (10, 16) and torch.equal(before, after)
    theirs = parts.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(theirs[name], value), name
