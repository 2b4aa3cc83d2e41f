"""Image classifiers and face recognisers under audit."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmgslora.families.audited_model import AuditedModel, Images, Objects, per_class_values
from mmgslora.families.classifier.blocks import after_blocks


class ClassificationImages(Images):
    """A data set of whole images, each with one label.

    Args:
        dataset: The data set, or its config.
        transforms: Replace the data set's own, for training data: those that are used for
            testing. Defaults to None.
        batch_size: Images per forward pass. Defaults to 100.
        evaluator: Config of the evaluator for the whole set. Defaults to None:
            ForgettingAccuracyMetric.
    """

    seen_through = 'transforms'

    def __init__(
        self,
        dataset: BaseDataset | dict,
        transforms: list[dict] | None = None,
        batch_size: int = 100,
        evaluator: dict | None = None,
    ) -> None:
        if isinstance(dataset, dict):
            dataset = copy.deepcopy(dataset)
            if transforms is not None:
                dataset['transforms'] = copy.deepcopy(transforms)
            dataset = DATASETS.build(dataset)
        dataset.full_init()
        self.dataset = dataset
        self.classes = tuple(dataset.metainfo['classes'])
        self.batch_size = batch_size
        self.evaluator = evaluator or dict(type='ForgettingAccuracyMetric')
        self._labels = [dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.dataset)

    def labels(self, index: int) -> np.ndarray:
        return np.array([self._labels[index]])

    def batch(self, indices: Sequence[int]) -> dict:
        """These images as a model's data preprocessor takes them."""
        return pseudo_collate([self.dataset[int(i)] for i in indices])


class AuditedClassifier(AuditedModel):
    """A :class:`mmgslora.models.Classifier`."""

    metric = 'Acc'
    clip_norm = 1.0

    def objects(self, data: ClassificationImages, images: Sequence[int] | None = None) -> Objects:
        """See :class:`AuditedModel`.

        Layers: ``block.0``, ... after each transformer block (:func:`after_blocks`), and
        ``embedding``, what the head reads.
        """
        images = np.arange(len(data)) if images is None else np.asarray(images)
        features: dict[str, list[np.ndarray]] = {}
        log_probs = []
        for batch in self._batches(data, images):
            inputs, _ = self._prepare(data, batch)
            with torch.no_grad(), after_blocks(self.model, inputs) as blocks:
                logits, embeddings = self.model(inputs, mode='tensor')
            for name, values in dict(blocks, embedding=embeddings).items():
                if len(values) == len(batch):  # some blocks fold positions into the batch
                    features.setdefault(name, []).append(values.float().cpu().numpy())
            log_probs.append(logits.float().log_softmax(-1).cpu().numpy())
        log_probs = np.concatenate(log_probs)
        return Objects(
            labels=np.concatenate([data.labels(i) for i in images]),
            images=images,
            features={name: np.concatenate(parts) for name, parts in features.items()},
            scores=np.exp(log_probs),
            log_probs=log_probs,
        )

    def evaluate(
        self,
        data: ClassificationImages,
        images: Sequence[int] | None = None,
        gone: Sequence[int] = (),
    ) -> dict[str, float]:
        """See :class:`AuditedModel`; accuracy counts every image: ``gone`` changes nothing."""
        # The run's own evaluator may want more, such as images of every class to verify faces.
        config = data.evaluator if images is None else dict(type='ForgettingAccuracyMetric')
        evaluator = Evaluator(copy.deepcopy(config))
        evaluator.dataset_meta = dict(classes=self.classes)
        images = np.arange(len(data)) if images is None else np.asarray(images)
        for batch in self._batches(data, images):
            inputs, samples = self._prepare(data, batch)
            with torch.no_grad():
                evaluator.process(self.model(inputs, samples, mode='predict'))
        return per_class_values(evaluator.evaluate(len(images)))

    @property
    def class_rows(self) -> list[tuple[nn.Parameter, nn.Parameter | None]]:
        layer = self.model.class_layer
        return [(layer.weight, getattr(layer, 'bias', None))]

    @property
    def class_layers(self) -> list[nn.Module]:
        return [self.model.class_layer]

    def loss(
        self, data: ClassificationImages, images: Sequence[int], labels: Sequence[int]
    ) -> Tensor:
        shown = [i for i in images if data.labels(i)[0] in labels]
        inputs, samples = self._prepare(data, shown)
        return self.model.parse_losses(self.model(inputs, samples, mode='loss'))[0]

    def _prepare(
        self, data: ClassificationImages, images: Sequence[int]
    ) -> tuple[Tensor, list[BaseDataElement]]:
        prepared = self.model.data_preprocessor(data.batch(images), False)
        inputs = prepared['inputs']
        inputs = inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))
        return inputs, prepared['data_samples']
