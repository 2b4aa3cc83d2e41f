"""The classifier family: image classifiers and face recognisers, made to forget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.families.base import ForgettingModel, taken
from mmgslora.families.cache import FeatureCache
from mmgslora.families.classifier.encoding import Encoding
from mmgslora.families.content import Identified
from mmgslora.families.view import SIDES, Matching, View
from mmgslora.lora.adapter import Adapter
from mmgslora.models import Classifier
from mmgslora.settings import NonNegative


@MODELS.register_module()
class ForgettingClassifier(ForgettingModel):
    """Makes an image classifier or a face recogniser forget.

    Margins of a face recogniser's head are part of the task loss, as in its training; predictions,
    the teacher's and ours, are the plain ones of test time.

    Args:
        classifier: Config of a :class:`~mmgslora.models.Classifier`: an ``ImageClassifier``, which
            is a backbone and a head, or a ``TorchvisionClassifier``, ``TimmClassifier`` or
            ``LibraryClassifier``, which are any network that ends in a Linear.
        method: Config of the forgetting method, e.g. ``dict(type='GSLoRA')``.
        tune: Config of what may change, e.g. ``dict(type='LoRA', rank=4)``. Defaults to None:
            what the method says; for most LoRA of rank 8 or 16 in the feed-forward
            network of every transformer block.
        init_cfg: As in MMEngine. Defaults to None.
        cache_gb: Memory for what blocks that do not learn, and teachers, give for an image, in
            10^9 bytes, see :class:`~mmgslora.families.classifier.encoding.Encoding`. It pays where
            the same pixels come again: without random crops and the like, or drawn once for a task
            (``redraw=False`` of :class:`~mmgslora.datasets.ForgettingViews`). Defaults to 0: all is
            computed in every step.

    Raises:
        ForgettingError: The model is none of these, an adapter is on the layer that gives the
            logits, or see :class:`ForgettingModel`.
    """

    model_key = 'classifier'
    images_together = 8

    def __init__(
        self,
        classifier: dict,
        method: dict,
        tune: dict | None = None,
        init_cfg: dict | None = None,
        cache_gb: NonNegative = 0.0,
    ) -> None:
        built = MODELS.build(copy.deepcopy(classifier))
        if not isinstance(built, Classifier):
            raise ForgettingError(
                f'{type(built).__name__} is no Classifier of mmgslora; any network that ends in a '
                "Linear is one as classifier=dict(type='LibraryClassifier', net=...)."
            )
        super().__init__(built, method, tune, init_cfg)
        self.plain_config = copy.deepcopy(classifier)
        self._encoding = Encoding(self.tune, FeatureCache(cache_gb * 1e9), self.together)
        layer = built.class_layer
        if isinstance(layer, Adapter):
            name = next(name for name, module in built.named_modules() if module is layer)
            raise ForgettingError(
                f'LoRA is on {name!r}, the Linear that gives the logits, where forgetting would be '
                "no more than other rows; leave it out of tune.target, or take tune.type='Full'."
            )

    @property
    def num_classes(self) -> int:
        return self.classifier.num_classes

    @property
    def classifier_weight(self) -> Tensor:
        """See :class:`ForgettingModel`."""
        return self.classifier.class_layer.weight

    @property
    def class_layers(self) -> list[nn.Module]:
        """See :class:`ForgettingModel`."""
        return [self.classifier.class_layer]

    def views(
        self,
        inputs: Tensor | Sequence[Tensor],
        data_samples: list[BaseDataElement],
        sides: Sequence[str] = SIDES,
        teachers: Sequence[str] = (),
    ) -> dict[str, View]:
        """See :class:`ForgettingModel`."""
        inputs, samples = taken(inputs, data_samples, sides)
        labels = torch.stack([sample.gt_label.reshape(()) for sample in samples])
        batch = Identified(inputs)
        now = self._encoding.outputs(self.classifier, batch)
        before = {}
        for name in teachers:
            with torch.no_grad(), self.tune.teacher(name) as teacher:
                before[name] = self._encoding.outputs(teacher, batch)
        views = {}
        for side in sides:
            rows = self._rows_of(side, samples)
            own = now[rows]
            views[side] = View(
                side=side,
                now=own,
                match=partial(self._match, own.embeddings, labels[rows]),
                teachers={name: outputs[rows] for name, outputs in before.items()},
                images=len(rows),
            )
        return views

    def relabelled(
        self, sample: BaseDataElement, draw: Callable[[Tensor], Tensor]
    ) -> BaseDataElement:
        """See :class:`ForgettingModel`."""
        other = copy.deepcopy(sample)
        other.gt_label = draw(sample.gt_label.reshape(1))
        return other

    def _match(self, embeddings: Tensor, labels: Tensor) -> Matching:
        loss = F.cross_entropy(self.classifier.training_logits(embeddings, labels), labels)
        rows = torch.arange(len(labels), device=labels.device)
        return Matching(labels, rows, dict(loss_ce=loss))
