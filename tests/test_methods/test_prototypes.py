"""Prototypes: means of the original model, kept with the run, checked when read."""

import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from mmgslora.datasets import PairedSampler
from mmgslora.errors import ForgettingError
from mmgslora.families.view import Matching, Outputs, View
from mmgslora.lora import adapters_disabled, inject_lora, lora_layers
from mmgslora.methods.base import Context
from mmgslora.methods.prototypes import FILE, Prototypes

from .views import context as made_context

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
        self.tune = SimpleNamespace(at_start=self.at_start)

    @contextmanager
    def at_start(self):
        with adapters_disabled(self.plain_model):
            yield

    def data_preprocessor(self, batch, training):
        return dict(batch=batch)

    def views(self, batch, sides, teachers):
        one = torch.ones(1, 2)
        with torch.no_grad():
            layer = self.plain_model[0]
            shift = layer(one) - nn.functional.linear(one, layer.weight, layer.bias)
        views = {}
        for side, (labels, embeddings) in (('forget', FORGET), ('retain', RETAIN)):
            now = Outputs(torch.zeros(len(labels), 3), torch.tensor(embeddings) + batch + shift)
            matching = Matching(torch.tensor(labels), torch.arange(len(labels)), {})
            views[side] = View(side, now, lambda matching=matching: matching)
        return views


@pytest.fixture
def context(tmp_path) -> Context:
    made = made_context()
    made.model, made.work_dir = Model(), tmp_path
    made.loader = [torch.zeros(1), torch.ones(1)]  # two batches, the second one shifted by 1
    return made


def test_means_of_the_original(context):
    prototypes = Prototypes('embeddings', passes=2)
    prototypes.before_task(context)
    torch.testing.assert_close(prototypes.values[:2], torch.tensor([[3.5, 1.5], [2.5, 4.5]]))
    assert prototypes.values[2].isnan().all()
    kept = load_file(context.work_dir / FILE)['prototypes']
    torch.testing.assert_close(kept, prototypes.values, equal_nan=True)


def test_a_pass_is_over_all_images_where_a_task_has_fewer_steps(context):
    """An epoch of two pairs is then a part of the five images to retain, each another one."""
    views = SimpleNamespace(num_forget=2, num_retain=5, forget_items=[[0, 1]])
    sampler = PairedSampler(views, pairs=2)
    context.loader = DataLoader(range(7), batch_size=2, sampler=sampler)
    seen = []

    def data_preprocessor(batch, training):
        seen.extend(item for item in batch.tolist() if item >= views.num_forget)
        return dict(batch=0.0)

    context.model.data_preprocessor = data_preprocessor
    Prototypes('embeddings', passes=2).before_task(context)
    assert set(seen) == {2, 3, 4, 5, 6} and len(seen) == 2 * 3 * 2


def test_the_file_is_open_to_others(context):
    umask = os.umask(0)
    os.umask(umask)
    Prototypes('head').before_task(context)
    assert (context.work_dir / FILE).stat().st_mode & 0o777 == 0o666 & ~umask


def test_progress_is_told(context, monkeypatch, capsys):
    monkeypatch.setattr('mmgslora.methods.prototypes._TELL_EVERY', 0.0)
    monkeypatch.setattr('mmgslora.methods.prototypes.print_log', lambda text, logger: print(text))
    Prototypes('embeddings', passes=2).before_task(context)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == 'Prototypes: 2 passes of 2 batches'
    assert said[1:] == [f'Prototypes: batch {n} of 4' for n in (1, 2, 3, 4)]


def test_one_pass_over_images_that_are_not_drawn_anew(context, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmgslora.methods.prototypes.print_log', lambda text, logger: said.append(text)
    )

    class Loader(list):
        dataset = SimpleNamespace(redraw=False)

    context.loader = Loader(context.loader)
    Prototypes('embeddings', passes=2).before_task(context)
    assert said == ['Prototypes: one pass of 2 batches']


def test_rows_of_the_head(context):
    prototypes = Prototypes('head')
    prototypes.before_task(context)
    context.model.classifier_weight.zero_()  # trained, or sealed
    assert prototypes.of(torch.tensor([2, 0])).tolist() == [[4, 5], [0, 1]]


def test_means_are_taken_without_dropout_and_without_a_graph(context):
    seen, views = [], context.model.views

    def looking(**given):
        seen.append((context.model.training, torch.is_grad_enabled()))
        return views(**given)

    context.model.views = looking
    context.model.train()
    Prototypes('embeddings', passes=1).before_task(context)
    assert seen == [(False, False)] * 2


def test_means_are_those_of_the_seed_whatever_was_drawn_before(context):
    """The images are varied by chance; another run from the same model finds the same means."""
    context.model.data_preprocessor = lambda batch, training: dict(batch=torch.rand(()))
    found = []
    for context.seed, drawn in ((5, 0), (5, 3), (6, 0)):
        torch.rand(drawn)
        prototypes = Prototypes('embeddings', passes=1)
        prototypes.before_task(context)
        found.append(prototypes.of(torch.tensor([0, 1])))
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


def test_they_are_of_the_original_in_every_task_and_survive_a_kill(context):
    first = Prototypes('embeddings')
    first.before_task(context)
    values = first.values
    later = made_context(number=2)
    later.model, later.loader = context.model, context.loader
    with torch.no_grad():  # task 1 was merged
        context.model.plain_model[0].weight.add_(1)
    first.before_task(later)
    assert first.values is values
    again = Prototypes('embeddings')
    again.load_state_dict(first.state_dict())
    assert again.values is values
    again.load_state_dict({})  # a checkpoint to start from has none
    assert again.values is values


def test_prototypes_of_a_different_model(context, tmp_path):
    Prototypes('embeddings').before_task(context)
    file = tmp_path / 'other.safetensors'
    Path(context.work_dir, FILE).rename(file)
    Prototypes('embeddings', str(file)).before_task(context)  # its own model
    with pytest.raises(ForgettingError, match="of 'embeddings' and method.prototypes is 'head'"):
        Prototypes('head', str(file)).before_task(context)
    same, context.task = context.task, made_context(names=('a', 'b', 'x')).task
    with pytest.raises(ForgettingError, match='another model or other classes'):
        Prototypes('embeddings', str(file)).before_task(context)
    context.task = same
    with torch.no_grad():
        context.model.plain_model[0].weight[0, 0] += 1
    with pytest.raises(ForgettingError, match=r'other\.safetensors.*another model'):
        Prototypes('embeddings', str(file)).before_task(context)
    file.write_bytes(b'no tensors')
    with pytest.raises(ForgettingError, match=r'other\.safetensors.*cannot be read'):
        Prototypes('embeddings', str(file)).before_task(context)
