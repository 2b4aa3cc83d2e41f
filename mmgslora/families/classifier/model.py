"""The classifier family: image classifiers and face recognisers, made to forget."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.families.base import ForgettingModel
from mmgslora.families.view import View
from mmgslora.lora import adapters_disabled
from mmgslora.losses import mean_over_processes


@MODELS.register_module()
class ForgettingClassifier(ForgettingModel):
    """Wraps an image classifier with group sparse LoRA and a forgetting method.

    Margins of a face recogniser's head are part of the task loss, as in its training; predictions,
    the teacher's and ours, are the plain ones of test time.

    Args:
        classifier: Config of an :class:`~mmgslora.models.ImageClassifier`, or of any model with
            its ``embed`` (images to embeddings), ``head`` (embeddings to logits, and
            ``training_logits``) and ``num_classes``.
        method: Config of the forgetting method, e.g. ``dict(type='GSLoRA')``.
        lora: Arguments of :func:`mmgslora.lora.inject_lora`. Defaults to rank 8, lora_alpha 1,
            the feed-forward network of every transformer block.
        init_cfg: As in MMEngine. Defaults to None.

    Raises:
        ForgettingError: The model has no such parts, or see :class:`ForgettingModel`.
    """

    part = 'classifier'

    def __init__(
        self,
        classifier: dict,
        method: dict,
        lora: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        built = MODELS.build(copy.deepcopy(classifier))
        if not (hasattr(built, 'embed') and hasattr(getattr(built, 'head', 0), 'training_logits')):
            raise ForgettingError(
                f'{type(built).__name__} has no embed and head with training_logits; '
                'ForgettingClassifier wraps an ImageClassifier.'
            )
        super().__init__(built, method, lora, init_cfg)

    @property
    def num_classes(self) -> int:
        return self.classifier.num_classes

    @property
    def classifier_weight(self) -> Tensor:
        """See :class:`ForgettingModel`."""
        return self.classifier.head.weight

    @property
    def class_layers(self) -> list[nn.Module]:
        """See :class:`ForgettingModel`."""
        return [self.classifier.head]

    def views(
        self, inputs: Tensor | Sequence[Tensor], data_samples: list[BaseDataElement]
    ) -> dict[str, View]:
        """See :class:`ForgettingModel`."""
        labels = torch.stack([sample.gt_label.reshape(()) for sample in data_samples])
        embeddings = self.classifier.embed(inputs)
        teacher = None
        if self.method.needs_teacher:
            with torch.no_grad(), adapters_disabled(self.classifier):
                teacher = self.classifier.embed(inputs)
        views = {}
        for side in ('forget', 'retain'):
            rows = self._rows_of(side, data_samples)
            before = None if teacher is None else teacher[rows]
            views[side] = self._view(side, embeddings[rows], before, labels[rows])
        return views

    def _view(self, side: str, embeddings: Tensor, teacher: Tensor | None, labels: Tensor) -> View:
        head = self.classifier.head
        loss = F.cross_entropy(head.training_logits(embeddings, labels), labels)
        logits = head(embeddings)
        before = None if teacher is None else head(teacher)
        return View(
            loss=loss,
            terms=dict(loss_ce=loss),
            labels=labels,
            logits=logits,
            embeddings=embeddings,
            log_probs=logits.log_softmax(-1),
            states=embeddings,
            classes=self.labels_of(side).to(labels.device),
            gone=torch.cat([self.labels_of(s) for s in ('forget', 'old')]).to(labels.device),
            teacher_log_probs=None if before is None else before.log_softmax(-1),
            teacher_states=teacher,
            drift=None if before is None else self._drift(logits, before),
        )

    def _drift(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Distance from the adapter-free classifier in everything but the classes to forget (ours).

        Kullback-Leibler divergence of the softmax over the other classes, weighted by the
        teacher's belief in them, per expected image of another class in all processes.
        """
        keep = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        keep[self.labels_of('forget').to(logits.device)] = False
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits, teacher_logits = logits.to(dtype), teacher_logits.to(dtype)
        other = teacher_logits.softmax(-1)[:, keep].sum(-1)
        divergence = F.kl_div(
            logits[:, keep].log_softmax(-1),
            teacher_logits[:, keep].log_softmax(-1),
            log_target=True,
            reduction='none',
        ).sum(-1)
        # The joint sum is clamped at 1, so the mean over processes at their share of that.
        expected = mean_over_processes(other.sum()).clamp(min=1 / get_world_size())
        return (other * divergence).sum() / expected
