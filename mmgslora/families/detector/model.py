"""The detector family: any DETR-like model of MMDetection, made to forget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.evaluation import labels_measured_whole
from mmgslora.families.base import ForgettingModel, taken
from mmgslora.families.view import SIDES, Matching, Outputs, View


@contextmanager
def _shared_queries(detector: nn.Module, first: dict) -> Iterator[None]:
    """Within, every pass decodes the queries of the first: row i is the same query in all.

    Two-stage detectors choose their queries from the encoder's output, so a teacher would choose
    others, in another order, and comparing it row by row would mean nothing.

    Args:
        detector: The detector that decodes, the student or a teacher.
        first: What the first pass decoded; empty before it.
    """

    def forward_decoder(memory: Tensor, **inputs) -> dict:
        if not first:
            first.update(inputs)
        return type(detector).forward_decoder(detector, memory=memory, **first)

    detector.forward_decoder = forward_decoder
    try:
        yield
    finally:
        del detector.forward_decoder


@contextmanager
def _recorded_targets(head: nn.Module, kept: Tensor | None) -> Iterator[list]:
    """Collect what ``head.get_targets`` returns: matching is slow on a CPU, once is enough.

    Queries that are not ``kept`` (None keeps all) are neither matched nor given any weight.
    """
    seen: list = []

    def get_targets(logits, boxes, *args, **kwargs):
        if kept is None:
            seen.append(type(head).get_targets(head, logits, boxes, *args, **kwargs))
            return seen[-1]
        logits, boxes = ([x[k] for x, k in zip(rows, kept)] for rows in (logits, boxes))
        *targets, positives, negatives = type(head).get_targets(
            head, logits, boxes, *args, **kwargs
        )
        for images, empty in zip(targets, (head.num_classes, 0, 0, 0)):
            for i, mask in enumerate(kept):
                full = images[i].new_full((len(mask), *images[i].shape[1:]), empty)
                full[mask] = images[i]
                images[i] = full
        seen.append((*targets, positives, negatives))
        return seen[-1]

    head.get_targets = get_targets
    try:
        yield seen
    finally:
        del head.get_targets


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


@MODELS.register_module()
class ForgettingDetector(ForgettingModel):
    """Makes a DETR-like detector forget.

    The detector is built from its own, unchanged config. Backbone and neck run in eval mode, so
    that batch-norm statistics stay as they are, and without gradients unless ``tune`` trains
    something there. Both views of a step share one forward pass. Queries for denoising and encoder
    losses belong to the detector's original training and are not used.

    Args:
        detector: Config of the detector, as in MMDetection.
        method: Config of the forgetting method, e.g. ``dict(type='GSLoRA')``.
        tune: Config of what may change, e.g. ``dict(type='LoRA', rank=4)``. Defaults to None:
            what the method says; for most LoRA of rank 8 and lora_alpha 1 in the feed-forward
            network of every transformer block outside backbone and neck.
        init_cfg: As in MMEngine. Defaults to None.

    Raises:
        ForgettingError: The model has no head with one-to-one matching, or see
            :class:`ForgettingModel`.
    """

    model_key = 'detector'
    frozen_parts = ('backbone', 'neck')

    def __init__(
        self,
        detector: dict,
        method: dict,
        tune: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        # MMDetection's constructors write into the config they are given.
        built = MODELS.build(copy.deepcopy(detector))
        head = getattr(built, 'bbox_head', None)
        if not (hasattr(built, 'forward_transformer') and hasattr(head, 'loss_by_feat_single')):
            raise ForgettingError(
                f'{type(built).__name__} has no DETR-like bbox_head; '
                'ForgettingDetector wraps detectors that match queries to boxes one to one.'
            )
        super().__init__(built, method, tune, init_cfg)
        self._trunk_learns = self.tune.trains(self.frozen_parts)

    @property
    def num_classes(self) -> int:
        return self.detector.bbox_head.num_classes

    @property
    def classifier_weight(self) -> Tensor:
        """See :class:`ForgettingModel`: the rows of the last decoder layer's class branch."""
        head = self.detector.bbox_head
        if hasattr(head, 'cls_branches'):
            branch = head.cls_branches[self.detector.decoder.num_layers - 1]
        else:
            branch = head.fc_cls
        return branch.weight[: self.num_classes]

    @property
    def class_layers(self) -> list[nn.Module]:
        """See :class:`ForgettingModel`: those of the decoder layers."""
        return class_layers(self.detector)

    def forward(
        self, inputs: Tensor, data_samples: SampleList | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list | tuple:
        """See :class:`ForgettingModel`; 'predict' also says, of the classes that must be gone,
        what every query makes of them (:func:`predict_every_query`).
        """
        labels = labels_measured_whole() if mode == 'predict' else []
        if labels:
            return predict_every_query(self.detector, inputs, data_samples, labels)
        return super().forward(inputs, data_samples, mode)

    def views(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        sides: Sequence[str] = SIDES,
        teachers: Sequence[str] = (),
    ) -> dict[str, View]:
        """See :class:`ForgettingModel`."""
        inputs, samples = taken(inputs, data_samples, sides)
        with torch.set_grad_enabled(self._trunk_learns and torch.is_grad_enabled()):
            features = self.detector.extract_feat(inputs)
        queries: dict = {}
        now = self._outputs(self.detector, features, samples, queries)
        kept = self._kept_queries(len(samples))
        before = {}
        for name in teachers:
            with torch.no_grad(), self.tune.teacher(name) as teacher:
                own = teacher.extract_feat(inputs) if self._trunk_learns else features
                before[name] = self._outputs(teacher, own, samples, queries)
        return {side: self._view(side, now, before, kept, samples) for side in sides}

    def relabelled(self, sample: DetDataSample, draw: Callable[[Tensor], Tensor]) -> DetDataSample:
        """See :class:`ForgettingModel`."""
        other = copy.deepcopy(sample)
        other.gt_instances.labels = draw(sample.gt_instances.labels)
        return other

    def _outputs(
        self, detector: nn.Module, features: tuple[Tensor, ...], samples: SampleList, queries: dict
    ) -> Outputs:
        """Of the last decoder layer: embeddings (b, q, D), logits (b, q, C), boxes (b, q, 4)."""
        with _shared_queries(detector, queries):
            inputs = detector.forward_transformer(features, samples)
        logits, boxes = detector.bbox_head(**inputs)
        kind = 'sigmoid' if detector.bbox_head.loss_cls.use_sigmoid else 'softmax_background'
        return Outputs(logits[-1], inputs['hidden_states'][-1], boxes[-1], kind)

    def _kept_queries(self, images: int) -> Tensor | None:
        """(b, q) queries of the last pass that can become detections; None where all can.

        A detector with distinct query selection drops duplicates inside its decoder and leaves
        one mask per attention head and layer; its own loss reads the first row of the last.
        """
        masks = getattr(self.detector, 'cache_dict', {}).get('distinct_query_mask')
        return masks[-1].unflatten(0, (images, -1))[:, 0, 0] if masks else None

    def _view(
        self,
        side: str,
        now: Outputs,
        before: dict[str, Outputs],
        kept: Tensor | None,
        samples: SampleList,
    ) -> View:
        rows = self._rows_of(side, samples)
        own = now[rows]
        kept = None if kept is None else kept[rows]
        return View(
            side=side,
            now=_one_row_per_query(own),
            match=partial(self._match, side, own, kept, [samples[i] for i in rows]),
            teachers={name: _one_row_per_query(x[rows]) for name, x in before.items()},
        )

    def _match(self, side: str, now: Outputs, kept: Tensor | None, samples: SampleList) -> Matching:
        head = self.detector.bbox_head
        for name, value in (('loss_cls', now.logits), ('loss_bbox', now.boxes)):
            if not torch.isfinite(value).all():  # matching would fail with less to say
                raise ForgettingError(
                    f'loss term {side}_{name} cannot be computed, the predictions it is made '
                    'of became NaN or infinite; start again with a lower learning rate or beta in '
                    'another --work-dir.'
                )
        with _recorded_targets(head, kept) as targets:
            values = head.loss_by_feat_single(
                now.logits,
                now.boxes,
                batch_gt_instances=[sample.gt_instances for sample in samples],
                batch_img_metas=[sample.metainfo for sample in samples],
            )
        labels = torch.cat(targets[0][0])
        matched = (labels < head.num_classes).nonzero().squeeze(-1)
        terms = dict(zip(('loss_cls', 'loss_bbox', 'loss_iou'), values))
        return Matching(labels[matched], matched, terms)


def _one_row_per_query(outputs: Outputs) -> Outputs:
    return Outputs(
        outputs.logits.flatten(0, 1),
        outputs.embeddings.flatten(0, 1),
        outputs.boxes.flatten(0, 1),
        outputs.kind,
    )
