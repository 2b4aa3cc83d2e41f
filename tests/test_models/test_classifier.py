import copy
import math

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset
from torchvision.models import WeightsEnum

from mmgslora.errors import ForgettingError
from mmgslora.models import ImageClassifier, vision_transformer

BACKBONE = dict(
    type='VisionTransformer',
    image_size=8,
    patch_size=4,
    num_layers=1,
    num_heads=2,
    hidden_dim=16,
    mlp_dim=32,
)
LINEAR = dict(type='LinearHead', embed_dims=16, num_classes=3)
COSINE = dict(type='CosineMarginHead', embed_dims=16, num_classes=3, scale=8.0)


@MODELS.register_module()
class MeanColour(nn.Module):
    """The simplest backbone there is: embeddings that can be worked out by hand."""

    def forward(self, images):
        return images.mean((2, 3))


def sample(label, number=0):
    return BaseDataElement(
        gt_label=torch.tensor(label), metainfo=dict(img_id=number, img_path=f'{number}.png')
    )


@pytest.fixture
def by_hand():
    """Three classes, one per colour; logits are the cosines times 8."""
    head = dict(type='CosineMarginHead', embed_dims=3, num_classes=3, scale=8.0)
    model = ImageClassifier(dict(type='MeanColour'), head)
    model.head.weight.data = torch.eye(3)
    return model


# The mean colours (3, 4, 0) and (0, 0, 2), not constant over the image.
IMAGES = torch.zeros(2, 3, 4, 6)
IMAGES[0, 0, :2], IMAGES[0, 1, :, :3], IMAGES[1, 2] = 6, 8, 2


def test_tensor_by_hand(by_hand):
    logits, embeddings = by_hand(IMAGES)
    torch.testing.assert_close(embeddings, torch.tensor([[3.0, 4, 0], [0, 0, 2]]))
    torch.testing.assert_close(logits, torch.tensor([[4.8, 6.4, 0], [0, 0, 8]]))


def test_loss_by_hand(by_hand):
    # The margin .35 takes 8 * .35 = 2.8 off the logit of the true class, 4.8 and 0.
    first = math.log(math.exp(2.0) + math.exp(6.4) + 1) - 2.0
    second = math.log(math.exp(-2.8) + 1 + math.exp(8)) + 2.8
    losses = by_hand(IMAGES, [sample(0), sample(1)], mode='loss')
    assert list(losses) == ['loss_ce']
    assert losses['loss_ce'].item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_predict_by_hand(by_hand):
    samples = [sample(0, 7), sample(2, 9)]
    predicted = by_hand(IMAGES, samples, mode='predict')
    assert predicted[0] is samples[0] and predicted[1].img_path == '9.png'
    assert [int(s.pred_label) for s in predicted] == [1, 2]
    total = math.exp(4.8) + math.exp(6.4) + 1
    scores = torch.tensor([math.exp(4.8) / total, math.exp(6.4) / total, 1 / total])
    torch.testing.assert_close(predicted[0].pred_scores, scores)
    torch.testing.assert_close(predicted[0].pred_logits, torch.tensor([4.8, 6.4, 0]))
    torch.testing.assert_close(predicted[0].embedding, torch.tensor([3.0, 4, 0]))
    assert predicted[0].logit_scale == 8 and int(predicted[0].gt_label) == 0


def test_predict_without_samples_and_without_scale():
    model = ImageClassifier(BACKBONE, LINEAR).eval()
    images = torch.randn(2, 3, 8, 8)
    predicted = model(images, mode='predict')
    logits, embeddings = model(images)
    torch.testing.assert_close(torch.stack([s.pred_logits for s in predicted]), logits)
    torch.testing.assert_close(torch.stack([s.embedding for s in predicted]), embeddings)
    assert all('logit_scale' not in s for s in predicted)


@pytest.mark.parametrize('labels', [[0, 2], [[0], [2]]])
def test_list_of_images_is_stacked(by_hand, labels):
    samples = [sample(label) for label in labels]
    joined = by_hand(IMAGES, samples, mode='loss')['loss_ce']
    assert by_hand(list(IMAGES), samples, mode='loss')['loss_ce'] == joined


def test_configs_stay_as_they_were():
    given = copy.deepcopy((BACKBONE, COSINE))
    model = ImageClassifier(*given)
    assert given == (BACKBONE, COSINE) and model.num_classes == 3


def test_published_weights_need_no_checkpoint(monkeypatch):
    sizes = {k: v for k, v in BACKBONE.items() if k not in ('type', 'image_size')}
    sizes['patch_size'] = 112
    monkeypatch.setitem(vision_transformer._ARCHS, 'vit_b_16', sizes)
    theirs = vision_transformer.torchvision.models.VisionTransformer(224, **sizes).state_dict()
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda entry, **_: theirs)
    backbone = dict(type='VisionTransformer', arch='vit_b_16', weights='IMAGENET1K_V1')
    every = [f'n{i:04}' for i in range(1000)]
    head = dict(type='ImageNetHead', folder_names=every[5:8], all_folder_names=every)
    assert ImageClassifier(backbone, head).is_pretrained
    assert not ImageClassifier(backbone, LINEAR).is_pretrained
    assert not ImageClassifier(BACKBONE, LINEAR).is_pretrained


@pytest.mark.parametrize(
    'images, message',
    [
        (torch.zeros(2, 3, 8, 9), '8 x 9 pixels and VisionTransformer needs 8 x 8; resize'),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)], '4 x 4 pixels and .* needs 8 x 8'),
    ],
)
def test_wrong_size_of_images(images, message):
    with pytest.raises(ForgettingError, match=message):
        ImageClassifier(BACKBONE, LINEAR)(images)


def test_backbone_without_a_size_needs_one_size(by_hand):
    with pytest.raises(ForgettingError, match='4 x 4, 8 x 8 pixels and MeanColour needs one size'):
        by_hand([torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)])


def test_widths_must_fit():
    with pytest.raises(ForgettingError, match='reads embeddings of 24 .* set embed_dims=16'):
        ImageClassifier(BACKBONE, {**COSINE, 'embed_dims': 24})


def test_samples_are_moved_only_from_elsewhere(by_hand):
    here = BaseDataElement(gt_label=torch.tensor(1), metainfo=dict(view='forget'))
    elsewhere = BaseDataElement(gt_label=torch.tensor(1, device='meta'))
    inside = BaseDataElement(inner=elsewhere)
    for sample in (elsewhere, inside):  # a CPU has nothing to copy from 'meta'
        with pytest.raises(NotImplementedError):
            by_hand.data_preprocessor(dict(data_samples=[sample]))
    given = by_hand.data_preprocessor(dict(inputs=[torch.ones(1)], data_samples=[here]))
    assert given['data_samples'][0] is here
    on_meta = by_hand.data_preprocessor.to('meta')
    moved = on_meta(dict(inputs=[torch.ones(1)], data_samples=[here]))
    assert moved['inputs'][0].is_meta and moved['data_samples'][0].gt_label.is_meta
    assert moved['data_samples'][0].view == 'forget' and not here.gt_label.is_meta


def test_unknown_mode(by_hand):
    with pytest.raises(ForgettingError, match="mode is 'losses'; allowed are 'tensor'"):
        by_hand(IMAGES, mode='losses')


class Colours(Dataset):
    """Images of one of three colours, with noise."""

    metainfo = dict(classes=('red', 'green', 'blue'))

    def __len__(self):
        return 24

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = 0.3 * torch.randn(3, 8, 8, generator=generator)
        image[index % 3] += 1
        return dict(inputs=image, data_samples=sample(index % 3, index))


@pytest.mark.parametrize('head', [LINEAR, COSINE])
def test_plain_mmengine_trains_it(head, tmp_path, monkeypatch):
    """EpochBasedTrainLoop, pseudo_collate (a list of images) and nothing of MMDetection."""
    monkeypatch.chdir(tmp_path)
    loader = dict(
        batch_size=8,
        dataset=Colours(),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
    )
    runner = Runner(
        model=dict(type='ImageClassifier', backbone=BACKBONE, head=head),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=10),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=3e-3)),
        default_scope='mmengine',
        experiment_name=f'{tmp_path.name}_{head["type"]}',
        log_level='ERROR',
    )
    runner.train()
    model = runner.model.eval()
    batch = [Colours()[i] for i in range(24)]
    with torch.no_grad():
        predicted = model(
            [b['inputs'] for b in batch], [b['data_samples'] for b in batch], 'predict'
        )
    assert [int(s.pred_label) for s in predicted] == [i % 3 for i in range(24)]
