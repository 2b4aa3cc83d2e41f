import copy

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement

from mmgslora.families.audited_model import same_inside, without_rows
from mmgslora.families.classifier.audited import AuditedClassifier, ClassificationImages

from .networks import SWIN

CONFIG = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        image_size=8,
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    ),
    head=dict(type='LinearHead', embed_dims=8, num_classes=3),
)
CLASSES = ('x', 'y', 'z')


class Images:
    """A data set in memory: noise of another brightness for each class."""

    metainfo = dict(classes=CLASSES)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = [i % 3 for i in range(30)]
        noise = torch.randn(30, 3, 8, 8, generator=generator)
        self.images = noise / 2 + torch.tensor(self.labels)[:, None, None, None]

    def full_init(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self.labels)

    def get_data_info(self, index: int) -> dict:
        return dict(gt_label=self.labels[index])

    def __getitem__(self, index: int) -> dict:
        sample = BaseDataElement(gt_label=torch.tensor(self.labels[index]))
        return dict(inputs=self.images[index], data_samples=sample)


@pytest.fixture(scope='module')
def data():
    return ClassificationImages(Images())


@pytest.fixture
def audited():
    return AuditedClassifier(MODELS.build(CONFIG), CLASSES, config=CONFIG)


def test_one_row_per_image(audited, data):
    images = [4, 0, 7]
    objects = audited.objects(data, images)
    assert objects.labels.tolist() == [1, 0, 1]
    assert objects.images.tolist() == images
    assert list(objects.features) == ['block.0', 'block.1', 'embedding']
    images = torch.stack([data.dataset.images[i] for i in images])
    with torch.no_grad():
        logits, embeddings = audited.model(images)
    np.testing.assert_allclose(objects.features['embedding'], embeddings, atol=1e-6)
    np.testing.assert_allclose(objects.scores, logits.softmax(-1), atol=1e-6)
    np.testing.assert_allclose(objects.log_probs, logits.log_softmax(-1), atol=1e-5)
    # torchvision's last LayerNorm makes the embedding of the class token after the last block.
    last = audited.model.backbone.encoder.ln(torch.from_numpy(objects.features['block.1']))
    np.testing.assert_allclose(last.detach(), embeddings, atol=1e-5)
    assert not audited.model.backbone.encoder.layers[0]._forward_hooks


def test_accuracy_is_counted(audited, data):
    data.batch_size = 7
    with torch.no_grad():
        predicted = audited.model(data.dataset.images)[0].argmax(-1)
    labels = torch.tensor(data.dataset.labels)
    expected = {
        name: 100 * float((predicted == labels)[labels == i].float().mean())
        for i, name in enumerate(CLASSES)
    }
    assert audited.evaluate(data) == pytest.approx(expected)
    assert audited.evaluate(data, gone=[2]) == pytest.approx(expected)
    assert list(audited.evaluate(data, images=[0, 3, 1])) == ['x', 'y']


def test_relearning_one_class(audited, data):
    images = data.holding([1])
    values = {
        step: student.evaluate(data)['y']
        for step, student in audited.relearn(data, images, [1], (0, 10), 1e-2, 4, seed=0)
    }
    assert values[10] == 100
    assert values[0] == audited.evaluate(data)['y']


def test_loss_is_that_of_the_asked_classes(audited, data):
    labels = data.dataset.labels[:9]
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            audited.model(data.dataset.images[:9])[0], torch.tensor(labels), reduction='none'
        )
        found = audited.loss(data, range(9), [0, 2])
    expected = losses[[i for i, label in enumerate(labels) if label != 1]].mean()
    torch.testing.assert_close(found, expected)


def test_untrained_is_random_but_reproducible(audited):
    rows = [audited.untrained(seed).model.head.weight for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


VIT = dict(CONFIG['backbone'], type='torchvision.models.VisionTransformer')
CNN = dict(type='TorchvisionClassifier', name='shufflenet_v2_x0_5', num_classes=3)


def library(net):
    config = dict(type='LibraryClassifier', net=dict(net, num_classes=3))
    return AuditedClassifier(MODELS.build(copy.deepcopy(config)), CLASSES, config=config)


def test_class_token_of_a_library_network(data):
    audited = library(VIT)
    objects = audited.objects(data, [4, 0, 7])
    assert list(objects.features) == ['block.0', 'block.1', 'embedding']
    last = audited.model.plain.encoder.ln(torch.from_numpy(objects.features['block.1']))
    np.testing.assert_allclose(last.detach(), objects.features['embedding'], atol=1e-5)


def test_without_a_class_token_it_is_the_mean_over_positions(data):
    audited = library(SWIN)
    objects = audited.objects(data, [4, 0, 7])
    assert [(k, v.shape) for k, v in objects.features.items()] == [
        ('block.0', (3, 8)),
        ('block.1', (3, 16)),
        ('embedding', (3, 16)),
    ]
    images = torch.stack([data.dataset.images[i] for i in (4, 0, 7)])
    with torch.no_grad():
        first = audited.model.plain.features[:2](images)  # (3, 2, 2, 8)
    np.testing.assert_allclose(objects.features['block.0'], first.mean((1, 2)), atol=1e-6)


def test_a_cnn_has_its_embedding_alone(data):
    audited = AuditedClassifier(MODELS.build(copy.deepcopy(CNN)), CLASSES, config=CNN)
    assert [*audited.objects(data, [0, 1]).features] == ['embedding']


def test_an_attacker_with_a_new_head_of_cosines_has_no_seal(data):
    """Or a sealed model, of which nothing is forgotten, would stand any attack."""
    head = dict(type='CosineMarginHead', embed_dims=8, num_classes=3)
    config = dict(CONFIG, head=head)
    audited = AuditedClassifier(MODELS.build(copy.deepcopy(config)), CLASSES, config=config)
    sealed = without_rows(audited, [1, 2])
    fresh = sealed.with_new_rows([1], seed=0)
    scores = fresh.objects(data, [0, 1]).scores
    assert scores[:, 1].all() and not scores[:, 2].any()
    assert sealed.model.head.sealed.tolist() == [0, 1, 1]


@pytest.mark.parametrize('net', [SWIN, VIT], ids=['swin', 'vit'])
def test_attacks_on_a_library_network(net, data):
    audited = library(net)
    fresh = audited.with_new_rows([1], seed=0)
    weight, before = fresh.model.class_layer.weight, audited.model.class_layer.weight
    assert torch.equal(weight[[0, 2]], before[[0, 2]]) and not torch.equal(weight[1], before[1])
    assert same_inside(audited, fresh)
    assert not without_rows(audited, [1]).objects(data, [0, 1]).scores[:, 1].any()
    images, values = data.holding([1]), {}
    for step, student in audited.relearn(data, images, [1], (0, 10), 1e-2, 4, seed=0):
        values[step] = student.evaluate(data)['y']
    assert values[0] == audited.evaluate(data)['y'] and values[10] == 100
    rows = [audited.untrained(seed).model.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(value, rows[1][key]) for key, value in rows[0].items())
    assert not all(torch.equal(value, rows[2][key]) for key, value in rows[0].items())
