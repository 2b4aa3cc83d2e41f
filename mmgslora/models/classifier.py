"""Classifiers: their modes under MMEngine, and those that are a backbone and a head."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmgslora.errors import ForgettingError


class ToDevice(BaseDataPreprocessor):
    """Moves what is elsewhere; MMEngine's copies every data sample, 6 % of a step of 29 ms."""

    def cast_data(self, data: Any) -> Any:
        """Images and samples on the device, and samples that are there as they are."""
        if isinstance(data, BaseDataElement) and all(map(self._is_there, data.values())):
            return data
        return super().cast_data(data)

    def _is_there(self, value: Any) -> bool:
        held = isinstance(value, (Tensor, BaseDataElement))
        return not held or getattr(value, 'device', None) == self.device


class Classifier(BaseModel):
    """An image classifier whose last layer turns an embedding into one logit per class.

    Args:
        data_preprocessor: As in MMEngine. None only moves the batch to the device, for the data
            set's transforms normalise the images.
        init_cfg: As in MMEngine.
    """

    is_pretrained = False
    """Whether the model has published weights, head included, so that no checkpoint is due."""
    may_be_trained = False
    """Whether weights that were trained may be in the model as it is built."""

    def __init__(self, data_preprocessor: dict | None, init_cfg: dict | None) -> None:
        placed = ToDevice() if data_preprocessor is None else copy.deepcopy(data_preprocessor)
        super().__init__(placed, copy.deepcopy(init_cfg))

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """C, the number of classes."""

    @property
    @abstractmethod
    def class_layer(self) -> nn.Module:
        """The layer that turns embeddings into logits; its ``weight`` is (C, D)."""

    @abstractmethod
    def read(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Plain logits (n, C) and embeddings (n, D) of images as in :meth:`forward`."""

    def training_logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, C) of the training loss for true ``labels`` (n,); here the plain ones."""
        return self.class_layer(embeddings)

    def forward(
        self,
        inputs: Tensor | Sequence[Tensor],
        data_samples: list[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor] | list[BaseDataElement]:
        """The three modes of MMEngine.

        Args:
            inputs: (n, 3, H, W), or a list of n images (3, H, W) of one size.
            data_samples: n samples with ``gt_label``, a whole number. Needed by 'loss' only.
            mode: 'tensor', 'loss' or 'predict'.

        Returns:
            'tensor': (plain logits (n, C), embeddings (n, D)). 'loss': ``loss_ce``, with the
            head's margin where it has one. 'predict': the data samples with ``pred_scores`` (C,)
            (softmax of the plain logits), ``pred_label`` (), ``pred_logits`` (C,) and
            ``embedding`` (D,); the metainfo ``logit_scale`` is what the head multiplied cosines
            with, for a head of cosines.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise ForgettingError(f"mode is {mode!r}; allowed are 'tensor', 'loss' and 'predict'.")
        logits, embeddings = self.read(inputs)
        if mode == 'tensor':
            return logits, embeddings
        if mode == 'predict':
            return self._predict(logits, embeddings, data_samples)
        labels = torch.stack([sample.gt_label.reshape(()) for sample in data_samples])
        return dict(loss_ce=F.cross_entropy(self.training_logits(embeddings, labels), labels))

    def _predict(
        self, logits: Tensor, embeddings: Tensor, samples: list[BaseDataElement] | None
    ) -> list[BaseDataElement]:
        if samples is None:
            samples = [BaseDataElement() for _ in embeddings]
        fields = dict(
            pred_scores=logits.softmax(-1),
            pred_label=logits.argmax(-1),
            pred_logits=logits,
            embedding=embeddings,
        )
        scale = getattr(self.class_layer, 'scale', None)
        for i, sample in enumerate(samples):
            sample.set_data({name: values[i] for name, values in fields.items()})
            if scale is not None:
                sample.set_metainfo(dict(logit_scale=scale))
        return samples


def one_size(inputs: Tensor | Sequence[Tensor], network: nn.Module) -> Tensor:
    """Images as one tensor (n, 3, H, W).

    Args:
        inputs: (n, 3, H, W), or n images (3, H, W).
        network: What they are for; its ``image_size``, if it has one, is height and width.

    Raises:
        ForgettingError: The images differ in size, or are not of the network's.
    """
    # Of a tensor at once: an exporter must not see how many images there are.
    images = [inputs] if isinstance(inputs, Tensor) else inputs
    sizes = {tuple(image.shape[-2:]) for image in images}
    wanted = getattr(network, 'image_size', None)
    wrong = [size for size in sizes if wanted is not None and size != (wanted, wanted)]
    if wrong or len(sizes) > 1:
        found = ', '.join(f'{height} x {width}' for height, width in sorted(wrong or sizes))
        needs = 'one size' if wanted is None else f'{wanted} x {wanted}'
        raise ForgettingError(
            f'A batch holds images of {found} pixels and {type(network).__name__} needs '
            f'{needs}; resize them in the transforms of the data set.'
        )
    return inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))


@MODELS.register_module()
class ImageClassifier(Classifier):
    """A backbone that embeds an image and a head that classifies the embedding.

    Args:
        backbone: Config of a module that turns images (n, 3, H, W) into embeddings (n, D).
        head: Config of a module with ``num_classes``, ``forward(embeddings)`` for the plain
            logits (n, C) and ``training_logits(embeddings, labels)``; see
            :mod:`mmgslora.models.heads`.
        data_preprocessor: As in MMEngine. Defaults to None: only moves the batch to the device,
            for the data set's transforms normalise the images.
        init_cfg: As in MMEngine. Defaults to None.

    Raises:
        ForgettingError: The head reads embeddings of another width than the backbone gives.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(copy.deepcopy(backbone))
        self.head = MODELS.build(copy.deepcopy(head))
        given = getattr(self.backbone, 'hidden_dim', None)
        read = getattr(self.head, 'embed_dims', None)
        if None not in (given, read) and given != read:
            raise ForgettingError(
                f'The head reads embeddings of {read} numbers and the backbone gives {given}; set '
                f'embed_dims={given} in the head.'
            )

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def class_layer(self) -> nn.Module:
        return self.head

    @property
    def is_pretrained(self) -> bool:
        """See :class:`Classifier`."""
        return all(self._published)

    @property
    def may_be_trained(self) -> bool:
        """See :class:`Classifier`."""
        return any(self._published)

    @property
    def _published(self) -> list[bool]:
        """Whether backbone and head say the name of published weights."""
        return [isinstance(getattr(x, 'weights', None), str) for x in (self.backbone, self.head)]

    def read(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`Classifier`."""
        embeddings = self.embed(inputs)
        return self.head(embeddings), embeddings

    def training_logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, C) with the head's margin, if it has one."""
        return self.head.training_logits(embeddings, labels)

    def embed(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Embeddings (n, D) of images as in :meth:`forward`.

        Raises:
            ForgettingError: See :func:`one_size`.
        """
        return self.backbone(one_size(inputs, self.backbone))
