"""The detector family: any DETR-like model of MMDetection, made to forget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from mmdet.structures import DetDataSample, SampleList
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.evaluation import labels_measured_whole
from mmgslora.families.base import ForgettingModel, taken
from mmgslora.families.cache import FeatureCache
from mmgslora.families.detector.encoding import Encoding, ImageBatch
from mmgslora.families.detector.predictions import class_layers, predict_every_query
from mmgslora.families.view import SIDES, Matching, Outputs, View
from mmgslora.settings import NonNegative


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


@MODELS.register_module()
class ForgettingDetector(ForgettingModel):
    """Makes a DETR-like detector forget.

    The detector is built from its own, unchanged config. Backbone and neck run in eval mode, so
    that batch-norm statistics stay as they are, and without gradients unless ``tune`` trains
    something there. Both views of a step share one forward pass. Queries for denoising and encoder
    losses belong to the detector's original training and are not used.

    What does not learn is computed once per image and kept, see
    :class:`~mmgslora.families.detector.encoding.Encoding`.

    Args:
        detector: Config of the detector, as in MMDetection.
        method: Config of the forgetting method, e.g. ``dict(type='GSLoRA')``.
        tune: Config of what may change, e.g. ``dict(type='LoRA', rank=4)``. Defaults to None:
            what the method says; for most LoRA of rank 8 or 16 in the feed-forward
            network of every transformer block outside backbone and neck.
        init_cfg: As in MMEngine. Defaults to None.
        cache_gb: Memory for kept features, in 10^9 bytes; 0 keeps none. Defaults to 2.

    Raises:
        ForgettingError: The model has no head with one-to-one matching, or see
            :class:`ForgettingModel`.
    """

    model_key = 'detector'
    frozen_parts = ('backbone', 'neck')
    images_together = 4

    def __init__(
        self,
        detector: dict,
        method: dict,
        tune: dict | None = None,
        init_cfg: dict | None = None,
        cache_gb: NonNegative = 2.0,
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
        self.plain_config = copy.deepcopy(detector)
        self._encoding = Encoding(self.tune, FeatureCache(cache_gb * 1e9), self.together)

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
        images = ImageBatch(inputs, samples)
        queries: dict = {}
        chooses = getattr(self.detector, 'as_two_stage', False)
        if not chooses:  # the teachers first: their one pass gives what the model shares with them
            before = {name: self._of_teacher(name, images, {}) for name in teachers}
        now = self._outputs(self.detector, images, queries)
        kept = self._kept_queries(len(samples))
        if chooses:
            before = {name: self._of_teacher(name, images, queries) for name in teachers}
        return {side: self._view(side, now, before, kept, samples) for side in sides}

    def relabelled(self, sample: DetDataSample, draw: Callable[[Tensor], Tensor]) -> DetDataSample:
        """See :class:`ForgettingModel`."""
        other = copy.deepcopy(sample)
        other.gt_instances.labels = draw(sample.gt_instances.labels)
        return other

    def _of_teacher(self, name: str, images: ImageBatch, queries: dict) -> Outputs:
        with torch.no_grad(), self.tune.teacher(name) as teacher:
            return self._outputs(teacher, images, queries)

    def _outputs(self, detector: nn.Module, images: ImageBatch, queries: dict) -> Outputs:
        """Embeddings (b, q, D), logits (b, q, C), boxes (b, q, 4); where nothing learns, of the
        last decoder layer alone.
        """
        kind = 'sigmoid' if detector.bbox_head.loss_cls.use_sigmoid else 'softmax_background'
        *earlier, last = [
            Outputs(logits, embeddings, boxes, kind)
            for embeddings, logits, boxes in self._encoding.outputs(detector, images, queries)
        ]
        return replace(last, earlier=tuple(earlier))

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
            images=len(rows),
        )

    def _match(self, side: str, now: Outputs, kept: Tensor | None, samples: SampleList) -> Matching:
        head = self.detector.bbox_head
        # A cost that is the log of a sigmoid of 0 in float16 is infinite, and nothing is matched.
        logits, boxes = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (now.logits, now.boxes)
        )
        for name, value in (('loss_cls', logits), ('loss_bbox', boxes)):
            if not torch.isfinite(value).all():  # matching would fail with less to say
                raise ForgettingError(
                    f'loss term {side}_{name} cannot be computed, the predictions it is made '
                    'of became NaN or infinite; start again with a lower learning rate or beta in '
                    'another --work-dir.'
                )
        with _recorded_targets(head, kept) as targets:
            values = head.loss_by_feat_single(
                logits,
                boxes,
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
        tuple(map(_one_row_per_query, outputs.earlier)),
    )
