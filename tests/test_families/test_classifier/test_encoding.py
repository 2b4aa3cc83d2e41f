"""What blocks that do not learn give is computed once per image, and gives what it gave."""

from collections import Counter

import pytest
import torch
from torch import nn

from mmgslora.datasets import Protocol
from mmgslora.families.cache import FeatureCache
from mmgslora.families.classifier import ForgettingClassifier
from mmgslora.families.classifier.encoding import Encoding, classifier_stages
from mmgslora.families.content import Identified
from mmgslora.families.together import Together
from mmgslora.lora import merge_adapters

from .test_model import BACKBONE, CLASSES, HEADS, OURS, batch, wake

SIDES = ['forget', 'retain', 'forget', 'retain']


def wrapped(cache_gb=1.0, tune=None, **method):
    torch.manual_seed(0)
    backbone = dict(BACKBONE, num_layers=3)
    classifier = dict(type='ImageClassifier', backbone=backbone, head=HEADS['linear'])
    model = ForgettingClassifier(classifier, dict(OURS, **method), tune, cache_gb=cache_gb)
    Protocol(CLASSES, [['b']]).partition(1).publish()
    wake(model)
    return model.train()


def hold(model, *numbers):
    for number in numbers:
        group = model.tune.groups('block')[number]
        group.hold()


def runs_of(model):
    """How many images each block is given from now on."""
    runs = [0, 0, 0]

    def count(number, images):
        runs[number] += images

    for i, layer in enumerate(model.classifier.backbone.encoder.layers):
        layer.mlp.register_forward_pre_hook(lambda m, a, i=i: count(i, len(a[0])))
    return runs


def test_once_per_image_and_only_for_what_does_not_learn():
    model = wrapped()
    images, samples = batch([1, 0, 1, 3], SIDES)
    model.views(images, samples, teachers=['task_start'])  # once, whether it can be continued from
    runs = runs_of(model)
    for _ in range(2):
        model.views(images, samples, teachers=['task_start'])
    assert runs == [8, 8, 8]  # all learn: every step for the student, the teacher is known
    hold(model, 0)
    model.views(images, samples, teachers=['task_start'])
    seen = list(runs)
    for _ in range(2):
        model.views(images, samples, teachers=['task_start'])
    assert [now - then for now, then in zip(runs, seen)] == [0, 8, 8]
    hold(model, 1)
    model.views(images, samples, teachers=['task_start'])
    seen = list(runs)
    model.views([x + 1 for x in images], samples, teachers=['task_start'])
    # Image by image the student's first two blocks and the teacher's last; the student's last.
    assert [now - then for now, then in zip(runs, seen)] == [4, 4, 8]


@pytest.mark.skipif(torch.__version__ < (2, 4), reason='attention fails under autocast there')
def test_what_autocast_has_rounded_is_not_given_without_it():
    found = []
    for gb in (0.0, 1.0):
        model = wrapped(gb)
        hold(model, 0, 1)
        images, samples = batch([1, 0, 1, 3], SIDES)
        with torch.autocast('cpu', torch.bfloat16):
            model.views(images, samples, teachers=['task_start'])
        found.append(model.views(images, samples, teachers=['task_start'])['retain'])
    torch.testing.assert_close(found[1].now.logits, found[0].now.logits)
    one, other = (view.teachers['task_start'].logits for view in found)
    torch.testing.assert_close(other, one)


def test_what_learns_is_never_run_without_gradients():
    """Autocast would keep its half precision, made there, for the pass that is to learn."""
    model = wrapped()
    images, samples = batch([1, 0, 1, 3], SIDES)
    modes = []
    model.classifier.backbone.encoder.layers[2].register_forward_pre_hook(
        lambda *_: modes.append(torch.is_grad_enabled())
    )
    for number in (0, 1):  # each begins the passes at another block
        hold(model, number)
        model.views(images, samples)
    assert len(modes) > 2 and all(modes)


@pytest.mark.parametrize('held', [[], [0], [0, 1], [0, 1, 2], [1, 2]])
def test_the_same_as_without(held):
    """Outputs, rows after the blocks, losses and gradients, in any order of the images."""
    found = []
    for gb in (0.0, 1.0):
        model = wrapped(gb)
        hold(model, *held)
        images, samples = batch([1, 0, 1, 3], SIDES)
        for order in ([2, 1, 0, 3], [0, 1, 2, 3]):
            views = model.views(
                [images[i] for i in order], [samples[i] for i in order], teachers=['task_start']
            )
        losses = model(images, samples, mode='loss')
        if len(held) < 3:
            sum(losses.values()).backward()
        found.append((views, losses, [p.grad for p in model.parameters()]))
    (views, losses, grads), (again, same, others) = found
    for side, view in views.items():
        for a, b in (
            (view.now, again[side].now),
            *zip(view.teachers.values(), again[side].teachers.values()),
        ):
            torch.testing.assert_close(a.logits, b.logits)
            torch.testing.assert_close(a.embeddings, b.embeddings)
            assert len(a.states) == len(b.states) == 3
            torch.testing.assert_close(a.states, b.states)
    torch.testing.assert_close(losses, same)
    for a, b in zip(grads, others):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_not_what_the_batch_was_but_the_image():
    """Bit for bit the same, in whichever batch an image was first asked for."""
    found = []
    for first in ([0, 1, 2, 3], [3, 2]):
        model = wrapped()
        hold(model, 0, 1)
        images, _ = batch([1, 0, 1, 3], SIDES)
        model._encoding.outputs(model.classifier, Identified([images[i] for i in first]))
        found.append(model._encoding.outputs(model.classifier, Identified(images)).logits)
    assert torch.equal(*found)


@torch.no_grad()
def test_nothing_stale_after_a_merge():
    model = wrapped()
    images, samples = batch([1, 0, 1, 3], SIDES)
    before = model.views(images, samples, teachers=['task_start'])['retain']
    merge_adapters(model)
    after = model.views(images, samples, teachers=['task_start'])['retain']
    torch.testing.assert_close(after.teachers['task_start'].logits, before.now.logits)
    kept = Counter(key[0] for key in model._encoding.cache._kept)  # of the model before: nothing
    assert len(kept) == 4 and set(kept.values()) == {4}


def test_what_was_not_asked_for_goes_first():
    """Beside what is asked for in every step the other stages, as long as there is room."""
    kept = []
    for room in (1e9, 2000):
        model = wrapped(room / 1e9)
        hold(model, 0)
        images, samples = batch([1, 0, 1, 3], SIDES)
        for _ in range(2):
            model.views(images, samples, teachers=['task_start'])
        cache = model._encoding.cache
        assert cache.bytes <= room
        sizes = (x.untyped_storage().nbytes() for entry in cache._kept.values() for x in entry)
        assert cache.bytes == sum(sizes)
        kept.append(Counter(key[0][0] for key in cache._kept))
    assert kept[0] == {'block.0': 4, 'block.1': 4, 'block.2': 4, 'head': 4}
    assert kept[1]['block.0'] == kept[1]['head'] == 4 and kept[1].total() < 16
    runs = runs_of(model)
    model.views(images, samples, teachers=['task_start'])
    assert runs == [0, 4, 4]


def test_dropout_is_drawn_anew():
    model = wrapped(dropout=True)
    hold(model, 0, 1)
    assert not model._encoding.stages.fixed(model.classifier)


class Around(nn.Module):
    """Three blocks, with a connection around the last two or without."""

    def __init__(self, chain):
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True) for _ in range(3)]
        self.layers, self.chain = nn.ModuleList(layers), chain

    def forward(self, images):
        x = first = self.layers[0](torch.stack(list(images)).flatten(2))
        x = self.layers[2](self.layers[1](x)) + (0 if self.chain else first)
        return x.mean(1), x[:, 0]


@pytest.mark.parametrize('chain', [True, False])
def test_continued_only_where_that_is_the_same(chain):
    torch.manual_seed(0)
    model = Around(chain).requires_grad_(False).eval()

    class Tune:
        owns = staticmethod(lambda key: False)
        learns = staticmethod(lambda module, recurse=True: module is model.layers[2])

    encoding = Encoding(Tune(), FeatureCache(1e9), Together(8))
    assert list(classifier_stages(model)) == ['block.0', 'block.1', 'block.2', 'head']
    assert list(encoding.stages.fixed(model)) == ['block.0', 'block.1']
    images = list(torch.randn(3, 4, 2, 4))
    for _ in range(2):
        now = encoding.outputs(model, Identified(images))
    torch.testing.assert_close(now.logits, model(images)[0])
    assert len(encoding.cache) == (6 if chain else 0)


@pytest.mark.parametrize('continues', [True, False])
def test_processes_meet_whatever_their_images_say(monkeypatch, continues):
    """One that does not go on from a block would leave the others waiting for it."""
    met = []
    monkeypatch.setattr(
        'mmgslora.families.together.all_reduce', lambda value, op: met.append((int(value), op))
    )
    monkeypatch.setattr(Encoding, '_continues', lambda *_: continues)
    model = wrapped()
    hold(model, 0)
    model.views(*batch([1, 0, 1, 3], SIDES))
    model.views(*batch([1, 0, 1, 3], SIDES))
    assert met == [(0, 'min')]  # of four images, where eight go together
