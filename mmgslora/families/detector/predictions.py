"""How a DETR-like detector scores classes, and what every query says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor, nn


@contextmanager
def _recorded_predictions(head: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect logits (q, C) and unit boxes (q, 4) from which the head lists each image's best."""
    seen: list[tuple[Tensor, Tensor]] = []

    def predict_single(logits: Tensor, boxes: Tensor, *args, **kwargs) -> InstanceData:
        seen.append((logits, boxes))
        return type(head)._predict_by_feat_single(head, logits, boxes, *args, **kwargs)

    head._predict_by_feat_single = predict_single
    try:
        yield seen
    finally:
        del head._predict_by_feat_single


def predict_every_query(
    detector: nn.Module, inputs: Tensor, data_samples: SampleList, labels: Sequence[int]
) -> SampleList:
    """Detections as always, and beside them what every query says of some classes.

    A detector lists its ``max_per_img`` best detections of all classes together, so that it is
    the other classes that decide how much of a weak one is seen.

    Args:
        detector: A DETR-like detector of MMDetection.
        inputs: Images (b, 3, H, W) from its data preprocessor.
        data_samples: Theirs.
        labels: The g classes in question.

    Returns:
        list[DetDataSample]: With ``pred_instances`` and ``every_query``: ``bboxes`` (q, 4), x1 y1
        x2 y2 in pixels of the original image, ``scores`` (q, g), a softmax head's whether or not
        the class is the likeliest, and ``labels`` in its metainfo. The queries are those that can
        become detections.
    """
    head, labels = detector.bbox_head, list(labels)
    with _recorded_predictions(head) as seen:
        samples = detector(inputs, data_samples, mode='predict')
    for sample, (logits, boxes) in zip(samples, seen):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = logits.sigmoid() if head.loss_cls.use_sigmoid else logits.softmax(-1)
        size = boxes.new_tensor(sample.img_shape[:2]).flip(0).repeat(2)
        boxes = (bbox_cxcywh_to_xyxy(boxes) * size).clamp(min=0).minimum(size)
        boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
        sample.every_query = InstanceData(
            metainfo=dict(labels=labels), bboxes=boxes, scores=scores[:, labels]
        )
    return samples


def class_rows(detector: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter | None]]:
    """Weight and bias with which each decoder layer, and a two-stage encoder, scores classes."""
    head = detector.bbox_head
    branches = head.cls_branches if hasattr(head, 'cls_branches') else [head.fc_cls]
    return [(branch.weight, branch.bias) for branch in dict.fromkeys(branches)]


def class_layers(detector: nn.Module) -> list[nn.Module]:
    """The layers that score classes after each decoder layer.

    Not the one of a two-stage encoder, which chooses the queries: some detectors read nothing but
    its first class.
    """
    head = detector.bbox_head
    if hasattr(head, 'cls_branches'):
        return list(head.cls_branches[: detector.decoder.num_layers])
    return [head.fc_cls]
