"""What the families share: a frozen plain model with adapters, a method, and plain checkpoints."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.families.checkpoint import fitting_weights
from mmgslora.families.view import View
from mmgslora.lora import inject_lora, reset_adapters
from mmgslora.models import seal_layer

_DROPS = (nn.Dropout, DropPath, nn.MultiheadAttention)


class ForgettingModel(BaseModel):
    """Wraps a plain model with group sparse LoRA and a forgetting method.

    Everything in the plain model is frozen but the LoRA matrices, and it stays in eval mode while
    training, apart from dropout outside the trunk where the method asks for it. A checkpoint of the
    plain model loads directly: its keys are recognised.

    Args:
        plain: The plain model, built.
        method: Config of the forgetting method.
        lora: Arguments of :func:`mmgslora.lora.inject_lora`.
        init_cfg: As in MMEngine.

    Raises:
        ForgettingError: Nothing in the model can carry LoRA, or a loaded checkpoint does not fit.
    """

    part: str
    """Name of the attribute that holds the plain model, and of its keys in checkpoints."""
    trunk: tuple[str, ...] = ()
    """Parts of the plain model that get no adapter unless ``lora`` says otherwise."""

    def __init__(
        self, plain: BaseModel, method: dict, lora: dict | None, init_cfg: dict | None
    ) -> None:
        super().__init__(data_preprocessor=plain.data_preprocessor, init_cfg=init_cfg)
        setattr(self, self.part, plain)
        inject_lora(plain, **{'exclude': self.trunk, **(lora or {})})
        self.method = MODELS.build(copy.deepcopy(method))
        self.method.bind(plain)
        self._register_load_state_dict_pre_hook(self._make_room_for_a_seal)
        self._register_load_state_dict_pre_hook(self._accept_plain_checkpoint)
        self.train()

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes the plain model tells apart."""

    @property
    @abstractmethod
    def classifier_weight(self) -> Tensor:
        """(C, D) the row with which the classifier head reads an embedding, for each class."""

    @property
    @abstractmethod
    def class_layers(self) -> list[nn.Module]:
        """The layers whose scores become predictions: what :meth:`sealed` takes classes from."""

    @abstractmethod
    def views(self, inputs: Any, data_samples: list) -> dict[str, View]:
        """The two sides, 'forget' and 'retain', of a batch in which every sample says its ``view``.

        ``inputs`` and ``data_samples`` are what the data preprocessor makes of a batch.
        """

    @property
    def plain_model(self) -> nn.Module:
        """The wrapped model itself (its LoRA layers included)."""
        return getattr(self, self.part)

    def init_weights(self) -> None:
        """Load what the plain model's ``init_cfg`` names; a random one has nothing to forget."""
        if self.plain_model.init_cfg is not None:
            self.plain_model.init_weights()
            reset_adapters(self.plain_model)

    def train(self, mode: bool = True) -> ForgettingModel:
        super().train(mode)
        self.plain_model.eval()
        if mode and self.method.dropout:
            for name, module in self.plain_model.named_modules():
                if isinstance(module, _DROPS) and not (self.trunk and name.startswith(self.trunk)):
                    module.train()
        return self

    def forward(
        self, inputs: Any, data_samples: list | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list | tuple:
        """The three modes of MMEngine; 'loss' takes a batch of both views (see PairedSampler)."""
        if mode == 'loss':
            return self.method.losses(**self.views(inputs, data_samples))
        return self.plain_model(inputs, data_samples, mode=mode)

    def labels_of(self, side: str) -> Tensor:
        """Labels of the classes that one side is about in the current task."""
        partition = ClassPartition.current()
        if partition is None:
            raise ForgettingError(
                'No forgetting task has begun; train with ContinualForgettingLoop, '
                'which says which classes go and which stay.'
            )
        return torch.tensor(partition.labels(side), dtype=torch.long)

    @contextmanager
    def sealed(self, labels: Sequence[int]) -> Iterator[None]:
        """Within, the head cannot name these classes (:func:`~mmgslora.models.seal_layer`).

        Afterwards it is bit for bit what it was.

        Args:
            labels: The classes.

        Raises:
            ForgettingError: A layer of the head cannot be sealed.
        """
        layers = list(dict.fromkeys(self.class_layers))
        before = [{key: value.clone() for key, value in x.state_dict().items()} for x in layers]
        try:
            for layer in layers:
                seal_layer(layer, labels)
            yield
        finally:
            for layer, state in zip(layers, before):
                if getattr(layer, 'sealed', None) is not None and 'sealed' not in state:
                    layer.sealed = None
                layer.load_state_dict(state)

    def _rows_of(self, side: str, samples: list) -> list[int]:
        """Positions of one side's images in a batch."""
        rows = [i for i, sample in enumerate(samples) if sample.metainfo.get('view') == side]
        if not rows:
            raise ForgettingError(
                f'A training batch holds no image of the {side} view; '
                'use PairedSampler and an even batch_size.'
            )
        return rows

    def _make_room_for_a_seal(self, state: dict, *_) -> None:
        """A sealed head of cosines has a buffer more than one that never was."""
        for name, layer in self.plain_model.named_modules():
            if getattr(layer, 'sealed', 0) is None and any(
                key.endswith(f'{name}.sealed') for key in state
            ):
                layer.seal([])

    def _accept_plain_checkpoint(self, state: dict, prefix: str, *_) -> None:
        """Make a checkpoint, of the plain model or of this one, fit, or refuse it."""
        own = f'{prefix}{self.part}.'
        given = {key.removeprefix(own).removeprefix(prefix): value for key, value in state.items()}
        model = f'{type(self.plain_model).__name__} of {self.num_classes} classes'
        weights = fitting_weights(given, self.plain_model.state_dict(), model)
        state.clear()
        state.update({f'{own}{key}': value for key, value in weights.items()})
