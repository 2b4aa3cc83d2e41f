import copy
import math

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from mmgslora.datasets import SHAPES, Protocol
from mmgslora.errors import ForgettingError
from mmgslora.families.detector import ForgettingDetector
from mmgslora.families.detector.predictions import predict_every_query
from mmgslora.families.view import Outputs
from mmgslora.lora import lora_layers, merge_adapters


@pytest.fixture
def plain(tiny_cfg, tiny_checkpoint):
    detector = MODELS.build(copy.deepcopy(tiny_cfg.model.detector))
    detector.load_state_dict(torch.load(tiny_checkpoint)['state_dict'])
    return detector.eval()


OURS = dict(type='GuidedGSLoRA')


@pytest.fixture
def build(tiny_cfg, tiny_checkpoint):
    def build(**method):
        method = method or OURS
        model = ForgettingDetector(tiny_cfg.model.detector, method)
        model.load_state_dict(torch.load(tiny_checkpoint)['state_dict'])
        Protocol(SHAPES, [['circle', 'square']]).partition(1).publish()
        return model

    return build


def batch(model, sides=('forget', 'retain', 'forget', 'retain'), size=64):
    torch.manual_seed(3)
    data = demo_mm_inputs(len(sides), [[3, size, size]] * len(sides), num_items=[2] * len(sides))
    for side, sample in zip(sides, data['data_samples']):
        sample.set_metainfo(dict(view=side))
        sample.gt_instances.labels = torch.tensor([0, 1] if side == 'forget' else [4, 7])
    return model.data_preprocessor(data, True)


def disturb(model):
    torch.manual_seed(4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)


def test_plain_checkpoint_loads_and_predicts_the_same(build, plain):
    model = build().eval()
    data = batch(model)
    with torch.no_grad():
        ours = model(**data, mode='predict')
        theirs = plain(**batch(model), mode='predict')
    for a, b in zip(ours, theirs):
        assert torch.allclose(a.pred_instances.scores, b.pred_instances.scores, atol=1e-6)
        assert torch.allclose(a.pred_instances.bboxes, b.pred_instances.bboxes, atol=1e-4)


def test_every_query_by_hand(plain):
    """One query, softmax over two classes and "no object", an image of half the size."""
    head = plain.bbox_head
    head.loss_cls.use_sigmoid = False
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 1.2]])  # too tall: it is clipped to the image
    sample = DetDataSample(metainfo=dict(img_shape=(20, 40), scale_factor=(0.5, 0.25)))
    plain.test_cfg = head.test_cfg = dict(max_per_img=1)

    def forward(inputs, samples, mode):
        samples[0].pred_instances = head._predict_by_feat_single(
            logits, boxes, samples[0].metainfo, rescale=True
        )
        return samples

    plain.forward = forward
    (found,) = predict_every_query(plain, torch.zeros(1, 3, 20, 40), [sample], [0])
    e = math.e
    assert found.every_query.scores.tolist() == [[pytest.approx(1 / (1 + e + e**2))]]
    expected = [[12 / 0.5, 0.0, 28 / 0.5, 20 / 0.25]]
    torch.testing.assert_close(found.every_query.bboxes, torch.tensor(expected))
    assert torch.equal(found.pred_instances.bboxes, found.every_query.bboxes)


def test_merged_weights_in_the_plain_model(build, plain):
    model = build().eval()
    disturb(model)
    with torch.no_grad():
        before = model(**batch(model), mode='predict')
    merge_adapters(model)
    state = {k: v for k, v in model.plain_model.state_dict().items() if 'lora_' not in k}
    plain.load_state_dict(state)
    with torch.no_grad():
        after = plain(**batch(model), mode='predict')
    for a, b in zip(before, after):
        assert (a.pred_instances.scores - b.pred_instances.scores).abs().max() < 1e-4
        assert (a.pred_instances.bboxes - b.pred_instances.bboxes).abs().max() < 1e-2


def test_view_terms_equal_the_heads_own_losses(build, plain):
    """The last decoder layer's losses of MMDetection on each side alone, as the reference."""
    model = build(type='GSLoRA').train()
    data = batch(model)
    model.method.dropout = False
    losses = model.train()(**data, mode='loss')
    plain.train()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    for side in ('retain', 'forget'):
        rows = [i for i, s in enumerate(data['data_samples']) if s.metainfo['view'] == side]
        reference = plain.loss(data['inputs'][rows], [data['data_samples'][i] for i in rows])
        for name in ('loss_cls', 'loss_bbox', 'loss_iou'):
            ours = losses[f'{side}_{name}'].item()
            expected = reference[name].item()
            if side == 'forget':
                expected = 0.015 * (max(0, 15 - expected) if name == 'loss_cls' else expected)
            assert ours == pytest.approx(expected, rel=1e-4)


def test_the_task_loss_of_predictions_in_half_precision(build):
    """A float16 sigmoid of -18 is 0, and mmcv's focal loss knows no bfloat16."""
    model = build(type='GSLoRA')
    given = []
    model.detector.bbox_head.loss_cls.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    true = InstanceData(labels=torch.tensor([0]), bboxes=torch.tensor([[16.0, 16, 48, 48]]))
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64)), gt_instances=true)
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.125, 0.125, 0.25, 0.25]]])
    for dtype in (torch.float16, torch.bfloat16):
        logits = torch.full((1, 2, model.num_classes), -18.0, dtype=dtype)
        now = Outputs(logits, torch.zeros(1, 2, 16), boxes.to(dtype), 'sigmoid')
        labels, matched, terms = model._match('forget', now, None, [sample])
        assert (labels.tolist(), matched.tolist()) == ([0], [0])
        # Focal loss of weight 2: 0.25 * 18 for the true class, and (1e-8)^2 * 1e-8 for the others.
        assert {k: v.item() for k, v in terms.items()} == pytest.approx(
            dict(loss_cls=9.0, loss_bbox=0.0, loss_iou=0.0), abs=1e-5
        )
    assert [x.dtype for x in given] == 2 * [torch.float32]


def test_drift_is_zero_until_something_moves(build):
    model = build().train()
    data = batch(model)
    assert model(**data, mode='loss')['retain_loss_drift'].item() == pytest.approx(0, abs=1e-5)
    disturb(model)
    assert model(**data, mode='loss')['retain_loss_drift'].item() > 1e-3


def test_only_adapters_train_and_all_of_them(build):
    model = build().train()
    disturb(model)
    sum(v for k, v in model(**batch(model), mode='loss').items() if 'loss' in k).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ('lora_' in name), name


def test_training_mode_leaves_batch_norm_alone_and_dropout_to_the_method(build):
    paper, ours = build(type='GSLoRA').train(), build().train()
    for model, dropout in ((paper, True), (ours, False)):
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms and not any(m.training for m in norms)
        attention = [m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
        assert [m.training for m in attention] == [dropout] * len(attention)
    before = {k: v.clone() for k, v in paper.state_dict().items()}
    paper(**batch(paper), mode='loss')
    assert all(torch.equal(before[k], v) for k, v in paper.state_dict().items())


def test_teacher_is_the_adapter_free_model(build, plain):
    model = build().eval()
    disturb(model)
    data = batch(model)
    with torch.no_grad():
        views = model.views(**data, teachers=['task_start'])
        theirs = plain(**data, mode='tensor')[0][-1]
    for side, rows in (('forget', [0, 2]), ('retain', [1, 3])):
        ours = views[side].teachers['task_start'].logits
        assert torch.allclose(ours, theirs[rows].flatten(0, 1), atol=1e-5)
        assert not torch.allclose(views[side].now.logits, ours, atol=1e-2)


def test_one_side_alone_is_the_same_and_costs_no_other(build):
    model = build().eval()
    data = batch(model)
    both, seen = model.views(**data), []
    extract = model.detector.extract_feat
    model.detector.extract_feat = lambda inputs: seen.append(len(inputs)) or extract(inputs)
    (retain,) = model.views(**data, sides=['retain']).values()
    assert len(seen) == 0 and retain.side == 'retain'  # these images are known
    torch.testing.assert_close(retain.now.logits, both['retain'].now.logits)
    assert retain.labels.tolist() == both['retain'].labels.tolist() and len(retain.matched) == 4


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (
            lambda s: s.update({'neck.convs.0.conv.bias': torch.zeros(16)}),
            'has .neck.convs.0.conv.bias.* lacks',
        ),
        (lambda s: s.pop('encoder.layers.0.norms.0.weight'), 'no .encoder.layers.0.norms.0.weight'),
        (
            lambda s: s.update({'bbox_head.cls_branches.1.weight': torch.zeros(80, 16)}),
            r'bbox_head.cls_branches.1.weight.*\(80, 16\).*\(10, 16\).*10 classes',
        ),
    ],
)
def test_checkpoint_that_does_not_fit(build, tiny_checkpoint, spoil, words):
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.load(tiny_checkpoint)['state_dict']
    spoil(state)
    with pytest.raises(ForgettingError, match=words):
        model.load_state_dict(state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_sealed_class_has_a_score_of_exactly_zero(build):
    """In every decoder layer; afterwards every weight is bit for bit what it was."""
    model = build().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    branches = model.detector.bbox_head.cls_branches
    with torch.no_grad(), model.sealed([0, 1]):
        for branch in branches:
            assert not branch.weight[:2].any() and (branch.bias[:2] == -1e4).all()
        for sample in model(**batch(model), mode='predict'):
            assert sample.every_query.labels == [0, 1]
            assert (sample.every_query.scores == 0).all()
            assert (sample.pred_instances.scores > 0).any()
        losses = model(**batch(model), mode='loss')  # both views have labels to match
        assert all(torch.isfinite(value) for value in losses.values())
        # A two-stage model's encoder chooses queries with a branch that is not sealed.
        two_stage = copy.deepcopy(branches[-1])
        branches.append(two_stage)
        assert model.class_layers == [branches[0], branches[1]]
        del branches[2]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_batch_without_a_view(build):
    model = build()
    with pytest.raises(ForgettingError, match='no image of the forget view'):
        model(**batch(model, sides=('retain', 'retain')), mode='loss')


def test_a_detector_without_matching_is_refused():
    detector = dict(
        type='RetinaNet',
        backbone=dict(type='ResNet', depth=18, base_channels=8),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1
        ),
    )
    with pytest.raises(ForgettingError, match='RetinaNet'):
        ForgettingDetector(detector, dict(type='GSLoRA'))
