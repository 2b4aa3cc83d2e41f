"""The classifier family: views and checkpoints of a tiny vision transformer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import nn

from mmgslora.datasets import Protocol
from mmgslora.errors import ForgettingError
from mmgslora.families.classifier import ForgettingClassifier
from mmgslora.lora import lora_layers
from mmgslora.methods import GuidedGSLoRA
from mmgslora.models import ImageClassifier, seal_layer

from .networks import SWIN

CLASSES = ('a', 'b', 'c', 'd')
BACKBONE = dict(
    type='VisionTransformer',
    image_size=16,
    patch_size=8,
    num_layers=2,
    num_heads=2,
    hidden_dim=8,
    mlp_dim=12,
)
HEADS = dict(
    linear=dict(type='LinearHead', embed_dims=8, num_classes=4),
    cosface=dict(type='CosineMarginHead', embed_dims=8, num_classes=4, scale=16.0),
)

OURS = dict(type='GuidedGSLoRA', forget_loss='odds')


def wrapped(head='linear', **method):
    torch.manual_seed(0)
    classifier = dict(type='ImageClassifier', backbone=BACKBONE, head=HEADS[head])
    return ForgettingClassifier(classifier, method=dict(OURS, **method))


def wake(model):
    """Give every adapter something to say."""
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(std=0.5, generator=generator)


def batch(labels, sides):
    torch.manual_seed(1)
    samples = [
        BaseDataElement(metainfo=dict(view=side), gt_label=torch.tensor(label))
        for label, side in zip(labels, sides)
    ]
    return [torch.randn(3, 16, 16) for _ in labels], samples


@pytest.fixture
def partition():
    partition = Protocol(CLASSES, [['b']]).partition(1)
    partition.publish()
    return partition


@pytest.mark.parametrize('head', HEADS)
def test_views(partition, head):
    model = wrapped(head)
    wake(model)
    images, samples = batch([1, 0, 1, 3], ['forget', 'retain', 'forget', 'retain'])
    views = model.views(images, samples, teachers=['task_start'])
    logits, embeddings = model.classifier(images)
    teacher, _ = wrapped(head).classifier(images)  # the same weights, adapters still zero
    for side, rows in (('forget', [0, 2]), ('retain', [1, 3])):
        view = views[side]
        labels = torch.tensor([1, 0, 1, 3])[rows]
        assert torch.equal(view.labels, labels) and view.matched.tolist() == [0, 1]
        torch.testing.assert_close(view.now.logits, logits[rows])
        torch.testing.assert_close(view.now.embeddings, embeddings[rows])
        before = view.teachers['task_start']
        torch.testing.assert_close(before.logits, teacher[rows])
        margin = torch.zeros(2, 4)
        if head == 'cosface':
            margin[torch.arange(2), labels] = 0.35 * 16
        log_probs = (logits[rows] - margin).log_softmax(-1)
        expected = -log_probs[torch.arange(2), labels].mean()
        torch.testing.assert_close(view.loss, expected, rtol=1e-4, atol=1e-5)
        assert list(view.terms) == ['loss_ce']
        assert not before.logits.requires_grad and view.now.logits.requires_grad


def test_only_adapters_learn_and_the_teacher_stays(partition):
    model = wrapped(sparsity=dict(mode='none'))
    before = copy.deepcopy(model.state_dict())
    images, samples = batch([1, 0], ['forget', 'retain'])
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    for _ in range(2):
        loss = sum(v for k, v in model(images, samples, mode='loss').items() if 'loss' in k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f'classifier.{k}' for k in adapter_names(model)}


def adapter_names(model):
    return [
        f'{name}.{matrix}'
        for name in lora_layers(model.classifier)
        for matrix in ('lora_A', 'lora_B')
    ]


def test_one_group_per_block(partition):
    assert [g.name for g in wrapped().tune.groups('block')] == [
        'backbone.encoder.layers.encoder_layer_0.mlp',
        'backbone.encoder.layers.encoder_layer_1.mlp',
    ]


def test_plain_checkpoints(partition):
    torch.manual_seed(5)
    plain = ImageClassifier(BACKBONE, HEADS['linear'])
    model = wrapped()
    model.load_state_dict(plain.state_dict())
    images, _ = batch([0, 1], ['forget', 'retain'])
    torch.testing.assert_close(model.eval()(images)[0], plain.eval()(images)[0])
    state = plain.state_dict()
    state['head.weight'] = state['head.weight'][:3]
    with pytest.raises(ForgettingError, match=r"'head.weight' is \(3, 8\).*\(4, 8\).*4 classes"):
        model.load_state_dict(state)
    state = plain.state_dict()
    del state['head.bias']
    with pytest.raises(ForgettingError, match="no 'head.bias'"):
        model.load_state_dict(state)


class PartCalledClassifier(nn.Module):
    """As torchvision's alexnet, vgg, densenet, mobilenet, efficientnet and convnext are."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3)
        self.classifier = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, images):
        return self.classifier(self.features(images).mean((2, 3)))


@pytest.mark.parametrize('around', [False, True])
def test_a_network_with_a_part_called_classifier(partition, around):
    """Its own file, and a training checkpoint of ours, load into the wrapper."""
    classifier = dict(type='LibraryClassifier', net=PartCalledClassifier())
    method, tune = dict(OURS, sparsity=dict(mode='none')), dict(type='Full')
    model, other = (ForgettingClassifier(classifier, method, tune) for _ in range(2))
    plain = PartCalledClassifier().state_dict()
    model.load_state_dict(plain)
    other.load_state_dict(model.state_dict() if around else model.plain_model.state_dict())
    found = other.plain_model.state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(value, plain[key]) for key, value in found.items())


def test_a_batch_without_one_side(partition):
    with pytest.raises(ForgettingError, match='no image of the forget view'):
        wrapped().views(*batch([0, 2], ['retain', 'retain']))


def test_other_models_are_refused():
    from mmengine.model import BaseModel
    from mmengine.registry import MODELS

    @MODELS.register_module(force=True)
    class NoHead(BaseModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return nn.Identity()(inputs)

    with pytest.raises(ForgettingError, match='NoHead is no Classifier.*LibraryClassifier'):
        ForgettingClassifier(dict(type='NoHead'), method=dict(type='GSLoRA'))


def test_weight_of_the_head(partition):
    assert wrapped().classifier_weight.shape == (4, 8)
    assert isinstance(wrapped().method, GuidedGSLoRA)


@pytest.mark.parametrize('head', HEADS)
def test_a_sealed_class_has_a_probability_of_exactly_zero(partition, head):
    model = wrapped(head)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    embeddings = torch.randn(500, 8) * torch.logspace(-2, 2, 500)[:, None]
    layer = model.classifier.head
    open_logits = layer(embeddings)
    with model.sealed([1]):
        logits = layer(embeddings)
        assert (logits[:, 1] == -1e4).all() and (logits.softmax(-1)[:, 1] == 0).all()
        assert torch.equal(logits[:, [0, 2, 3]], open_logits[:, [0, 2, 3]])
        trained = layer.training_logits(embeddings, torch.ones(500, dtype=torch.long))
        assert torch.isfinite(F.cross_entropy(trained, torch.ones(500, dtype=torch.long)))
        sealed = {k: v.clone() for k, v in model.plain_model.state_dict().items()}
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(layer(embeddings), open_logits)

    # The file loads into the plain classifier and into one that is to forget more.
    state = {k: v for k, v in sealed.items() if 'lora_' not in k}
    plain = ImageClassifier(BACKBONE, HEADS[head])
    plain.load_state_dict(state)
    torch.testing.assert_close(plain.head(embeddings), logits)
    again = wrapped(head)
    again.load_state_dict(state)
    torch.testing.assert_close(again.classifier.head(embeddings), logits)
    images, samples = batch([1, 0, 1, 3], ['forget', 'retain', 'forget', 'retain'])
    losses = again(images, samples, mode='loss')
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in again.parameters() if p.grad is not None)


def test_a_layer_that_cannot_be_sealed():
    with pytest.raises(ForgettingError, match='A Linear without a bias cannot be sealed'):
        seal_layer(nn.Linear(3, 4, bias=False), [1])


VIT = dict(BACKBONE, type='torchvision.models.VisionTransformer', num_classes=4)
LIBRARY = dict(type='LibraryClassifier', net=VIT)
CNN = dict(type='TorchvisionClassifier', name='shufflenet_v2_x0_5', num_classes=4)
MOBILE = dict(type='TorchvisionClassifier', name='mobilenet_v3_small', num_classes=4)


def test_views_of_a_library_network(partition):
    """Logits, embeddings and the teacher are those of the plain network."""
    model = ForgettingClassifier(copy.deepcopy(LIBRARY), OURS)
    nn.init.normal_(model.classifier_weight)  # torchvision's starts at zero
    plain = copy.deepcopy(model.classifier.plain)
    wake(model)
    images, samples = batch([1, 0], ['forget', 'retain'])
    views = model.views(images, samples, teachers=['task_start'])
    stacked = torch.stack(images)
    for row, side in enumerate(('forget', 'retain')):
        now, before = views[side].now, views[side].teachers['task_start']
        torch.testing.assert_close(now.logits, model.classifier.plain(stacked)[[row]])
        torch.testing.assert_close(before.logits, plain.eval()(stacked)[[row]])
        weight, bias = model.classifier_weight, model.class_layers[0].bias
        torch.testing.assert_close(F.linear(now.embeddings, weight, bias), now.logits)
        assert not torch.allclose(now.logits, before.logits)
    sum(model(images, samples, mode='loss').values()).backward()
    model.tune.check_gradients()


def test_a_library_network_is_sealed(partition):
    model = ForgettingClassifier(copy.deepcopy(LIBRARY), OURS)
    images, _ = batch([0, 1], ['forget', 'retain'])
    before = model.eval()(images)[0]
    with model.sealed([1]):
        assert (model(images)[0].softmax(-1)[:, 1] == 0).all()
    assert torch.equal(model(images)[0], before)


def test_adapters_that_are_never_called(partition):
    """torchvision's Swin reads the weights of its projections."""
    swin = dict(type='LibraryClassifier', net=dict(SWIN, num_classes=4))
    model = ForgettingClassifier(swin, OURS, dict(type='LoRA', rank=2, layers='attention'))
    images, samples = batch([1, 0], ['forget', 'retain'])
    with pytest.raises(ForgettingError, match='4 of 4 LoRA layers got no gradient: features.1.0'):
        model(images, samples, mode='loss')


@pytest.mark.parametrize(
    'classifier, tune, message',
    [
        (CNN, None, r"No transformer .* block .*; its Linears there: fc; .* tune.type='Full'"),
        (CNN, dict(type='LoRA', rank=2, target='fc'), "LoRA is on 'fc', the Linear that gives"),
        (LIBRARY, dict(type='LoRA', rank=2, target='.*head'), "LoRA is on 'heads.head', the Lin"),
    ],
)
def test_networks_without_a_place_for_adapters(classifier, tune, message):
    with pytest.raises(ForgettingError, match=message):
        ForgettingClassifier(classifier, dict(type='RetainOnly'), tune)


def test_linears_of_a_cnn_by_name(partition):
    tune = dict(type='LoRA', rank=2, target=r'classifier\.0')
    model = ForgettingClassifier(MOBILE, OURS, tune)
    assert [group.name for group in model.tune.groups('block')] == ['classifier']
    images, samples = batch([1, 0], ['forget', 'retain'])
    images = [image.repeat(1, 2, 2) for image in images]
    sum(v for k, v in model(images, samples, mode='loss').items() if 'loss' in k).backward()
    model.tune.check_gradients()
