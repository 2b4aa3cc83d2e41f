"""Prototypes: means of the original model, kept with the run, checked when read."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from safetensors.torch import load_file
from torch import nn

from mmgslora.engine import PrototypeHook
from mmgslora.errors import ForgettingError
from mmgslora.lora import inject_lora, lora_layers

# Label and embedding of every object, by view; class 2 has no data.
FORGET = ([1, 1], [[1.0, 2.0], [3.0, 6.0]])
RETAIN = ([0, 0, 0], [[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]])


class Model(nn.Module):
    """Answers with the objects above, shifted by what its adapter does."""

    def __init__(self):
        super().__init__()
        self.plain_model = nn.Sequential(nn.Linear(2, 2))
        inject_lora(self.plain_model, rank=1, target='0')
        nn.init.ones_(lora_layers(self.plain_model)['0'].lora_B)
        self.classifier_weight = torch.arange(6.0).reshape(3, 2)
        self.method = SimpleNamespace(
            prototype_source='embeddings', prototype_file=None, prototypes=None
        )

    def data_preprocessor(self, batch, training):
        return dict(batch=batch)

    def views(self, batch):
        zero = torch.zeros(1, 2)
        with torch.no_grad():
            shift = self.plain_model(zero + 1) - nn.functional.linear(
                zero + 1, self.plain_model[0].weight, self.plain_model[0].bias
            )
        return {
            side: SimpleNamespace(
                labels=torch.tensor(labels), embeddings=torch.tensor(embeddings) + batch + shift
            )
            for side, (labels, embeddings) in (('forget', FORGET), ('retain', RETAIN))
        }


@pytest.fixture
def runner(tmp_path):
    loop = SimpleNamespace(
        task=1,
        model=Model(),
        dataloader=[torch.zeros(1), torch.ones(1)],  # two batches, the second one shifted by 1
        views=SimpleNamespace(classes=('a', 'b', 'c')),
    )
    return SimpleNamespace(
        train_loop=loop,
        work_dir=str(tmp_path),
        seed=0,
        message_hub=MessageHub.get_current_instance(),
    )


def test_means_of_the_original(runner):
    PrototypeHook(passes=2).before_forget_task(runner)
    found = runner.train_loop.model.method.prototypes
    torch.testing.assert_close(found[:2], torch.tensor([[3.5, 1.5], [2.5, 4.5]]))
    assert found[2].isnan().all()
    kept = load_file(Path(runner.work_dir, 'prototypes.safetensors'))['prototypes']
    torch.testing.assert_close(kept, found, equal_nan=True)


def test_progress_and_seconds_are_told(runner, monkeypatch, capsys):
    monkeypatch.setattr('mmgslora.engine.prototype_hook._TELL_EVERY', 0.0)
    monkeypatch.setattr(
        'mmgslora.engine.prototype_hook.print_log', lambda text, logger: print(text)
    )
    PrototypeHook(passes=2).before_forget_task(runner)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == 'Prototypes: 2 passes of 2 batches'
    assert said[1:] == [f'Prototypes: batch {n} of 4' for n in (1, 2, 3, 4)]
    assert runner.message_hub.get_info('prototype_seconds') > 0


def test_rows_of_the_head(runner):
    model = runner.train_loop.model
    model.method.prototype_source = 'head'
    PrototypeHook().before_forget_task(runner)
    assert model.method.prototypes.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_resumed_run_reads_them_and_a_later_task_leaves_them(runner):
    hook, method = PrototypeHook(), runner.train_loop.model.method
    hook.before_forget_task(runner)
    first = method.prototypes
    runner.train_loop.task = 2
    with torch.no_grad():  # task 1 was merged
        runner.train_loop.model.plain_model[0].weight.add_(1)
    hook.before_forget_task(runner)
    hook.before_train_epoch(runner)
    assert method.prototypes is first
    method.prototypes = None
    hook.before_train_epoch(runner)
    torch.testing.assert_close(method.prototypes, first, equal_nan=True)


def test_prototypes_of_a_different_model(runner, tmp_path):
    PrototypeHook().before_forget_task(runner)
    file = tmp_path / 'other.safetensors'
    Path(runner.work_dir, 'prototypes.safetensors').rename(file)
    method = runner.train_loop.model.method
    method.prototype_file = str(file)
    PrototypeHook().before_forget_task(runner)  # its own model
    with torch.no_grad():
        runner.train_loop.model.plain_model[0].weight[0, 0] += 1
    with pytest.raises(ForgettingError, match=r'other\.safetensors.*another model'):
        PrototypeHook().before_forget_task(runner)
    file.write_bytes(b'no tensors')
    with pytest.raises(ForgettingError, match=r'other\.safetensors.*cannot be read'):
        PrototypeHook().before_forget_task(runner)


def test_a_whole_run_killed_and_resumed(run_cfg):
    """Ours on the tiny detector; stopped in task 2, it goes on with the same prototypes."""
    run_cfg.model.method = dict(type='GuidedGSLoRA')
    run_cfg.train_dataloader.dataset.update(few_shot=2)
    run_cfg.custom_hooks.append(dict(type='AveragingHook'))

    def finish(name, stop=None):
        cfg = copy.deepcopy(run_cfg)
        cfg.experiment_name = f'{run_cfg.experiment_name}_{name}_{stop}'
        cfg.work_dir = f'{run_cfg.work_dir}_{name}'
        if Path(cfg.work_dir).exists():
            cfg.resume, cfg.load_from = True, None
        runner = Runner.from_cfg(cfg)
        if stop:
            loop, run_epoch = runner.train_loop, runner.train_loop.run_epoch

            def run_some():
                run_epoch()
                loop.stop_training = loop.epoch == stop

            loop.run_epoch = run_some
        runner.train()
        return runner

    whole = finish('whole')
    finish('parts', stop=3)
    parts = finish('parts')
    assert parts.train_loop.model.method.prototypes.shape == (10, 16)
    theirs = parts.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(theirs[name], value), name
