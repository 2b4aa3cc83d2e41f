import copy

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS
from torchvision.ops import box_iou

from mmgslora.audit.probes import probe_accuracy
from mmgslora.datasets.shapes import SHAPES
from mmgslora.families.audited_model import _training_mode
from mmgslora.families.detector.audited import AuditedDetector, DetectionImages, _mean_under

GONE = [0, 1]


@pytest.fixture(scope='module')
def data(tiny_cfg):
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance('audit_data', scope_name='mmdet')
    return DetectionImages(tiny_cfg.val_dataloader.dataset)


def build(tiny_cfg, tiny_checkpoint) -> AuditedDetector:
    detector = MODELS.build(copy.deepcopy(tiny_cfg.model.detector))
    detector.load_state_dict(torch.load(tiny_checkpoint)['state_dict'])
    return AuditedDetector(detector, SHAPES, config=tiny_cfg.model.detector)


@pytest.fixture
def audited(tiny_cfg, tiny_checkpoint):
    return build(tiny_cfg, tiny_checkpoint)


def test_ap_is_that_of_mmdetection(audited, tiny_cfg, data):
    config = tiny_cfg.val_dataloader.dataset
    metric = CocoMetric(ann_file=f'{config.data_root}{config.ann_file}', classwise=True)
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=audited.classes)
    for i in range(len(data)):
        inputs = audited.model.data_preprocessor(data.batch([i]))
        with torch.no_grad():
            evaluator.process(audited.model.predict(inputs['inputs'], inputs['data_samples']))
    expected = evaluator.evaluate(len(data))
    found = audited.evaluate(data)
    assert max(found.values()) > 10
    for name, value in found.items():
        assert value == pytest.approx(100 * expected[f'coco/{name}_precision'], abs=0.06)


def test_ap_of_classes_that_must_be_gone_needs_no_free_slots(audited, data):
    everything = audited.evaluate(data)
    strict = audited.evaluate(data, gone=GONE)
    audited.model.test_cfg['max_per_img'] = 1
    few = audited.evaluate(data, gone=GONE)
    for label, name in enumerate(audited.classes):
        if label in GONE:
            assert few[name] == strict[name] >= everything[name]
        elif name in everything:
            assert strict[name] == everything[name]
    assert sum(few.values()) < sum(strict.values())


def test_every_true_object_is_there_once(audited, data):
    objects = audited.objects(data)
    expected = [
        (i, int(item['bbox_label']))
        for i in range(len(data))
        for item in data.dataset.get_data_info(i)['instances']
    ]
    assert list(zip(objects.images.tolist(), objects.labels.tolist())) == expected
    assert list(objects.features) == ['neck', 'encoder', 'decoder.0', 'decoder.1']
    assert objects.features['encoder'].shape == (len(expected), 3 * 16)
    assert objects.features['decoder.1'].shape == (len(expected), 16)
    np.testing.assert_allclose(np.exp(objects.log_probs).sum(-1), 1, atol=1e-5)


def test_batches_do_not_matter(audited, data):
    whole = audited.objects(data, [3, 1])
    assert whole.images.tolist() == sorted(whole.images.tolist(), reverse=True)
    data.batch_size = 1
    single = audited.objects(data, [3, 1])
    data.batch_size = 32
    for name, values in whole.features.items():
        np.testing.assert_allclose(values, single.features[name], atol=2e-5)
    np.testing.assert_allclose(whole.scores, single.scores, atol=2e-5)


def test_query_is_the_one_with_the_best_box(audited, data):
    objects = audited.objects(data)
    head = audited.model.bbox_head
    for index in range(4):
        prepared = audited.model.data_preprocessor(data.batch([index]))
        with torch.no_grad():
            outputs = audited.model.forward(**prepared, mode='tensor')
        logits, boxes = outputs[0][-1, 0], outputs[1][-1, 0] * 64
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], -1)
        items = data.dataset.get_data_info(index)['instances']
        true = torch.tensor([item['bbox'] for item in items], dtype=torch.float)
        overlaps = box_iou(true, corners)
        rows = np.flatnonzero(objects.images == index)
        expected = logits[overlaps.argmax(-1)]
        # The head of the last layer reads just these states.
        states = torch.from_numpy(objects.features['decoder.1'][rows])
        torch.testing.assert_close(head.cls_branches[1](states), expected, atol=1e-4, rtol=1e-4)
        background = -torch.log1p(expected.exp().sum(-1))
        found = torch.from_numpy(objects.log_probs[rows])
        torch.testing.assert_close(found[:, -1], background, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            found[:, :-1], expected + background[:, None], atol=1e-4, rtol=1e-4
        )
        np.testing.assert_allclose(objects.overlaps[rows], overlaps.amax(-1), atol=1e-4)
        for row, of_object in zip(rows, overlaps):
            on = logits.sigmoid()[of_object >= 0.5]
            best = on.max(0).values if len(on) else torch.zeros(10)
            np.testing.assert_allclose(objects.scores[row], best, atol=1e-4)


def test_mean_under_a_box():
    tokens = torch.arange(16.0).reshape(1, 4, 4)
    boxes = torch.tensor(
        [
            [0.0, 0.0, 1.0, 1.0],  # all: mean of 0 to 15
            [0.0, 0.0, 0.5, 0.5],  # 0, 1, 4, 5
            [0.5, 0.74, 1.0, 1.0],  # centres 0.875 only: 14, 15
            [0.51, 0.26, 0.6, 0.3],  # none: the cell at (0.555, 0.28), row 1, column 2
        ]
    )
    assert _mean_under(tokens, boxes)[:, 0].tolist() == [7.5, 2.5, 14.5, 6.0]


def test_image_is_a_part_of_its_batch(audited, data):
    # The same image, alone and in a batch that is padded to twice the width.
    with torch.no_grad():
        seen = audited._look(*audited._prepare(data, [0]))
    assert seen['encoder'][0].shape[-2:] == (16, 16)
    sample = audited._prepare(data, [0])[1][0]
    wide = dict(seen, neck=[torch.cat([x, x + 100], -1) for x in seen['neck']])
    sample.set_metainfo(dict(batch_input_shape=(128, 256)))
    alone = audited._of_image(seen, 0, audited._prepare(data, [0])[1][0])
    found = audited._of_image(wide, 0, sample)
    np.testing.assert_allclose(found['features']['neck'], alone['features']['neck'], atol=1e-4)


def test_cutting_the_head_leaves_the_probe(audited, tiny_cfg, tiny_checkpoint, data):
    cut = build(tiny_cfg, tiny_checkpoint)
    for branch in cut.model.bbox_head.cls_branches:
        branch.weight.data[GONE] = 0
        branch.bias.data[GONE] = -20
    # AP ranks even scores of 1e-9.
    before, after = (
        sum(s.evaluate(data, gone=GONE)[audited.classes[i]] for i in GONE) for s in (audited, cut)
    )
    assert before > 20 and after < before / 5
    objects = [s.objects(data) for s in (audited, cut)]
    assert objects[1].scores[:, GONE].max() < 1e-6
    before, after = (probe_accuracy(o, o, GONE)['decoder.1'] for o in objects)
    assert before == after


def test_relearning_lowers_the_loss_and_spares_the_model(audited, data):
    before = {k: v.clone() for k, v in audited.model.state_dict().items()}
    images = data.holding(GONE)
    losses = []
    for step, student in audited.relearn(data, images, GONE, (0, 8), 1e-3, 8, seed=0):
        _training_mode(student.model)
        losses.append(float(student.loss(data, images, GONE).detach()))
        changed = [
            k for k, v in student.model.state_dict().items() if not torch.equal(v, before[k])
        ]
        assert bool(changed) == (step > 0)
        assert not any('running_' in k for k in changed)
    assert losses[1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in audited.model.state_dict().items())


def test_loss_sees_the_asked_classes_alone(audited, data):
    image = next(i for i in range(len(data)) if len(set(data.labels(i))) > 1)
    labels = data.labels(image)
    seen = []
    audited.model.loss = lambda inputs, samples: (
        seen.append(samples[0].gt_instances) or dict(loss=inputs.sum())
    )
    audited.loss(data, [image], [labels[0]])
    assert set(seen[0].labels.tolist()) == {labels[0]}
    boxes = [
        item['bbox']
        for item in data.dataset.get_data_info(image)['instances']
        if item['bbox_label'] == labels[0]
    ]
    # The pipeline doubles the image.
    np.testing.assert_allclose(seen[0].bboxes, 2 * np.array(boxes))


def test_boxes_follow_the_pipelines_scale(tiny_cfg):
    large = copy.deepcopy(tiny_cfg.val_dataloader.dataset)
    large.pipeline[1].scale = (96, 96)
    data = DetectionImages(large)
    sample = data.batch([0])['data_samples'][0]
    true = [item['bbox'] for item in data.dataset.get_data_info(0)['instances']]
    np.testing.assert_allclose(sample.gt_instances.bboxes, np.array(true) * 1.5)
    np.testing.assert_allclose(sample.unit_boxes, np.array(true) / 64)


def test_untrained_detector_has_other_weights(audited):
    other = audited.untrained(0)
    assert not other.model.training
    weights = [s.model.bbox_head.cls_branches[0].weight for s in (audited, other)]
    assert not torch.equal(*weights)
    again = audited.untrained(0).model.bbox_head.cls_branches[0].weight
    assert torch.equal(weights[1], again)
