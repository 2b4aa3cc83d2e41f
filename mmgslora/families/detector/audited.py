"""DETR-like detectors of MMDetection under audit."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.families.audited_model import AuditedModel, Images, Objects, per_class_values
from mmgslora.families.detector.predictions import class_layers, class_rows, predict_every_query

_CACHE_BYTES = 2**29
_ON_OBJECT = 0.5
"""IoU from which on a predicted box counts as being on an object, as for COCO's AP50."""


class DetectionImages(Images):
    """A box data set of MMDetection, seen through a pipeline without chance.

    Boxes are read from the data set itself, so it does not matter where in the pipeline
    annotations are loaded, or whether they are. Prepared images are kept in memory, up to 512 MiB.

    Args:
        dataset: The data set, or its config.
        pipeline: Replaces the data set's own, for training data: the one that is used for
            testing. Defaults to None.
        batch_size: Images per forward pass. Defaults to 32.
        evaluator: Config of the evaluator for the whole set. Defaults to None:
            ForgettingCocoMetric with the boxes of the data set.
    """

    seen_through = 'pipeline'

    def __init__(
        self,
        dataset: BaseDataset | dict,
        pipeline: list[dict] | None = None,
        batch_size: int = 32,
        evaluator: dict | None = None,
    ) -> None:
        if isinstance(dataset, dict):
            dataset = copy.deepcopy(dataset)
            if pipeline is not None:
                dataset['pipeline'] = copy.deepcopy(pipeline)
            dataset = DATASETS.build(dataset)
        dataset.full_init()
        self.dataset = dataset
        self.classes = tuple(dataset.metainfo['classes'])
        self._truth = [self._read_truth(i) for i in range(len(dataset))]
        self.batch_size = batch_size
        self.evaluator = evaluator or dict(type='ForgettingCocoMetric')
        self._cache: dict[int, dict] = {}
        self._free = _CACHE_BYTES

    def _read_truth(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        items = self.dataset.get_data_info(index)['instances']
        items = [item for item in items if not item.get('ignore_flag')]
        boxes = np.array([item['bbox'] for item in items], dtype=np.float32).reshape(-1, 4)
        return np.array([item['bbox_label'] for item in items], dtype=int), boxes

    def __len__(self) -> int:
        return len(self.dataset)

    def labels(self, index: int) -> np.ndarray:
        return self._truth[index][0]

    def batch(self, indices: Sequence[int]) -> dict:
        """These images as a model's data preprocessor takes them, true boxes in model pixels."""
        return pseudo_collate([self._item(int(i)) for i in indices])

    def _item(self, index: int) -> dict:
        item = self._cache.get(index)
        if item is None:
            info = self.dataset.get_data_info(index)
            item = self.dataset.pipeline(copy.deepcopy(info))
            sample = item['data_samples']
            labels, boxes = self._truth[index]
            (height, width), scale = sample.ori_shape, sample.get('scale_factor', (1.0, 1.0))
            size = np.array([width, height, width, height], dtype=np.float32)
            sample.gt_instances = InstanceData(
                bboxes=torch.from_numpy(boxes * np.tile(np.float32(scale), 2)),
                labels=torch.from_numpy(labels),
            )
            sample.set_metainfo(
                dict(instances=info['instances'], unit_boxes=torch.from_numpy(boxes / size))
            )
            self._free -= item['inputs'].nbytes
            if self._free > 0:
                self._cache[index] = item
        return dict(inputs=item['inputs'], data_samples=copy.deepcopy(item['data_samples']))


class AuditedDetector(AuditedModel):
    """A DETR-like detector."""

    metric = 'AP'
    clip_norm = 0.1

    def objects(self, data: DetectionImages, images: Sequence[int] | None = None) -> Objects:
        """See :class:`AuditedModel`.

        The prediction on an object is the query whose last box has the highest IoU with it (ties:
        the higher score). Layers: ``neck`` and ``encoder``, the mean over the tokens under the
        box, levels side by side; ``decoder.0``, ... that query's state as the head reads it.

        A head of independent class scores (sigmoid) says nothing of "no object"; its
        log-probabilities are those of at most one class being there, softmax([logits, 0]).
        """
        labels, rows, parts = [], [], []
        for batch in self._batches(data, images):
            inputs, samples = self._prepare(data, batch)
            with torch.no_grad():
                seen = self._look(inputs, samples)
            for i, index in enumerate(batch):
                if len(data.labels(index)):
                    labels.append(data.labels(index))
                    rows.append(np.full(len(labels[-1]), index))
                    parts.append(self._of_image(seen, i, samples[i]))
        features = {
            name: np.concatenate([p['features'][name] for p in parts])
            for name in parts[0]['features']
        }
        return Objects(
            labels=np.concatenate(labels),
            images=np.concatenate(rows),
            features=features,
            scores=np.concatenate([p['scores'] for p in parts]),
            log_probs=np.concatenate([p['log_probs'] for p in parts]),
            overlaps=np.concatenate([p['overlaps'] for p in parts]),
        )

    def _look(self, inputs: Tensor, samples: list[DetDataSample]) -> dict:
        """One forward pass: neck, encoder tokens, decoder states, logits and unit boxes."""
        neck = self.model.extract_feat(inputs)
        with _recorded_encoder(self.model) as encoded:
            head_inputs = self.model.forward_transformer(neck, samples)
        logits, boxes = self.model.bbox_head(**head_inputs)[:2]
        memory = encoded[0]['memory']
        shapes = encoded[0].get('spatial_shapes')
        shapes = [neck[-1].shape[-2:]] if shapes is None else shapes.tolist()
        levels = memory.split([h * w for h, w in shapes], 1)
        maps = [x.transpose(1, 2).unflatten(2, tuple(s)) for x, s in zip(levels, shapes)]
        return dict(
            neck=neck,
            encoder=maps,
            states=head_inputs['hidden_states'],
            logits=logits[-1].float(),
            boxes=bbox_cxcywh_to_xyxy(boxes[-1].float()),
        )

    def _of_image(self, seen: dict, i: int, sample: DetDataSample) -> dict:
        logits, boxes = seen['logits'][i], seen['boxes'][i]
        truth = sample.unit_boxes.to(boxes)
        if self.model.bbox_head.loss_cls.use_sigmoid:
            scores = logits.sigmoid()
            log_probs = F.pad(logits, (0, 1)).log_softmax(-1)
        else:
            log_probs = logits.log_softmax(-1)
            scores = log_probs[:, :-1].exp()
        overlaps = bbox_overlaps(truth, boxes)  # (objects, queries)
        # Scores are at most 1, and float32 holds IoUs apart by far more than this.
        chosen = (overlaps + 1e-6 * scores.max(-1).values).argmax(-1)
        on = overlaps >= _ON_OBJECT
        best = (on[..., None] * scores).amax(1)
        # Feature maps cover the padded batch, boxes the image alone.
        (height, width), (full_h, full_w) = sample.img_shape, sample.batch_input_shape
        under = truth * truth.new_tensor([width / full_w, height / full_h] * 2)
        features = {
            part: torch.cat([_mean_under(x[i], under) for x in seen[part]], -1)
            for part in ('neck', 'encoder')
        }
        for layer, states in enumerate(seen['states']):
            features[f'decoder.{layer}'] = states[i, chosen]
        return dict(
            features={name: x.float().cpu().numpy() for name, x in features.items()},
            scores=best.cpu().numpy(),
            log_probs=log_probs[chosen].cpu().numpy(),
            overlaps=overlaps.amax(-1).cpu().numpy(),
        )

    def evaluate(
        self,
        data: DetectionImages,
        images: Sequence[int] | None = None,
        gone: Sequence[int] = (),
    ) -> dict[str, float]:
        """See :class:`AuditedModel`; the metric of a run measures, and reads what is gone where
        a run publishes it.
        """
        forget = tuple(self.classes[label] for label in gone)
        stay = tuple(name for name in self.classes if name not in forget)
        ClassPartition(task=1, forget=forget, retain=stay, classes=self.classes).publish()
        # The run's own evaluator may read a file with all images.
        config = data.evaluator if images is None else dict(type='ForgettingCocoMetric')
        evaluator = Evaluator(copy.deepcopy(config))
        evaluator.dataset_meta = dict(classes=self.classes)
        count = 0
        for batch in self._batches(data, images):
            inputs, samples = self._prepare(data, batch)
            with torch.no_grad():
                evaluator.process(predict_every_query(self.model, inputs, samples, gone))
            count += len(batch)
        return per_class_values(evaluator.evaluate(count))

    @property
    def class_rows(self) -> list[tuple[nn.Parameter, nn.Parameter | None]]:
        return class_rows(self.model)

    @property
    def class_layers(self) -> list[nn.Module]:
        return class_layers(self.model)

    @property
    def new_bias(self) -> float:
        """Scores of .01 for a head of independent ones, as MMDetection starts it."""
        return -math.log(99) if self.model.bbox_head.loss_cls.use_sigmoid else 0.0

    def loss(self, data: DetectionImages, images: Sequence[int], labels: Sequence[int]) -> Tensor:
        inputs, samples = self._prepare(data, images)
        for sample in samples:
            true = sample.gt_instances
            sample.gt_instances = true[torch.isin(true.labels, true.labels.new_tensor(labels))]
        return self.model.parse_losses(self.model.loss(inputs, samples))[0]

    def _prepare(
        self, data: DetectionImages, batch: Sequence[int]
    ) -> tuple[Tensor, list[DetDataSample]]:
        prepared = self.model.data_preprocessor(data.batch(batch), False)
        return prepared['inputs'], prepared['data_samples']


@contextmanager
def _recorded_encoder(detector: nn.Module) -> Iterator[list[dict]]:
    """Collect what ``detector.forward_encoder`` returns."""
    seen: list[dict] = []

    def forward_encoder(*args, **kwargs) -> dict:
        seen.append(type(detector).forward_encoder(detector, *args, **kwargs))
        return seen[-1]

    detector.forward_encoder = forward_encoder
    try:
        yield seen
    finally:
        del detector.forward_encoder


def _mean_under(tokens: Tensor, boxes: Tensor) -> Tensor:
    """Mean of a (D, h, w) map over the cells with their centre in each unit box, (n, D).

    A box that holds no centre is given the cell that its own centre lies in.
    """
    _, height, width = tokens.shape
    inside = []
    for low, high, cells in ((1, 3, height), (0, 2, width)):
        centres = (torch.arange(cells, device=boxes.device) + 0.5) / cells
        holds = (centres >= boxes[:, low, None]) & (centres <= boxes[:, high, None])
        middle = ((boxes[:, low] + boxes[:, high]) / 2 * cells).long().clamp(0, cells - 1)
        bare = ~holds.any(-1)
        holds[bare, middle[bare]] = True
        inside.append(holds.to(tokens.dtype))
    rows, columns = inside
    total = torch.einsum('dhw,nh,nw->nd', tokens, rows, columns)
    return total / (rows.sum(-1) * columns.sum(-1))[:, None]
