"""The average of the adapters is what a task leaves."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner
from safetensors.torch import load_file
from torch import nn

from mmgslora.engine import AveragingHook
from mmgslora.errors import ForgettingError


def steps(hook, values, epochs=4):
    """Let a parameter take these values, one a step; what is merged then."""
    model = nn.Linear(1, 1, bias=False)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    model.frozen = frozen
    length = len(values) // epochs
    loop = SimpleNamespace(model=model, epochs_per_task=epochs, dataloader=range(length))
    runner = SimpleNamespace(train_loop=loop)
    hook.before_forget_task(runner)
    for step, value in enumerate(values):
        loop.epoch_in_task, batch = divmod(step, length)
        nn.init.constant_(model.weight, value)
        hook.after_train_iter(runner, batch)
    hook.before_merge(runner)
    assert frozen.item() == 1
    return model.weight.item()


def test_by_hand():
    hook = AveragingHook(begin=0.5, decay=0.75)
    # begins at epoch 2 with 8, then 0.75 * 8 + 0.25 * 4
    assert steps(hook, [100.0, 50.0, 8.0, 4.0]) == 7
    assert steps(hook, [0.0, 0.0, 1.0, 1.0]) == 1  # nothing is left of the task before


@pytest.mark.parametrize('epochs', [1, 2, 4])
def test_it_begins_at_its_share_however_few_epochs_a_task_has(epochs):
    assert steps(AveragingHook(begin=0.5, decay=0.75), [100.0, 50.0, 8.0, 4.0], epochs) == 7


def test_no_decay_is_the_last_step():
    assert steps(AveragingHook(begin=0, decay=0), [3.0, 1.0, 4.0, 1.5]) == 1.5


@pytest.mark.parametrize('arguments', [dict(begin=1.0), dict(decay=1.0), dict(decay=-0.1)])
def test_out_of_range(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ForgettingError, match=f'{name} is {value}'):
        AveragingHook(**arguments)


def test_the_average_is_saved_merged_and_handed_on(run_cfg):
    """What is written as the adapter is what the merged weights gained."""
    run_cfg.custom_hooks.append(dict(type='AveragingHook', begin=0.0, decay=0.9))
    run_cfg.train_cfg.protocol.tasks = [['circle']]
    seen = {}
    runner = Runner.from_cfg(run_cfg)
    name = 'encoder.layers.0.ffn.layers.1'
    layer = runner.model.detector.get_submodule(name)
    update = runner.train_loop.runner.call_hook

    def call_hook(stage, **kwargs):
        if stage == 'before_merge':
            seen.update(last=layer.lora_B.detach().clone(), weight=layer.weight.detach().clone())
        update(stage, **kwargs)

    runner.call_hook = call_hook
    runner.train()
    adapter = load_file(f'{run_cfg.work_dir}/adapters/task_01/adapter_model.safetensors')
    A, B = (adapter[f'base_model.model.{name}.lora_{x}.weight'] for x in 'AB')
    assert not torch.equal(B, seen['last'])
    merged = torch.load(f'{run_cfg.work_dir}/merged/task_01.pth')['state_dict'][f'{name}.weight']
    torch.testing.assert_close(merged, seen['weight'] + B @ A / 8, rtol=1e-5, atol=1e-6)
