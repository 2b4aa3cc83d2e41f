"""What the families share: a plain model that is tuned, a method, and plain checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.families.checkpoint import fitting_weights
from mmgslora.families.together import Together
from mmgslora.families.untrained import untrained
from mmgslora.families.view import SIDES, View
from mmgslora.methods.base import Context, Task, build_method
from mmgslora.models import seal_layer
from mmgslora.tuning import build_tuner

_DROPS = (nn.Dropout, DropPath, nn.MultiheadAttention)


class ForgettingModel(BaseModel):
    """Wraps a plain model with a forgetting method and what the method may change of it.

    The model stays in eval mode while training, apart from dropout outside the frozen parts where
    the method asks for it. A checkpoint of the plain model loads directly: its keys are recognised.

    Args:
        plain: The plain model, built.
        method: Config of the forgetting method, see :data:`~mmgslora.methods.METHODS`.
        tune: Config of what may change, see :data:`~mmgslora.tuning.TUNERS`. None: what the
            method says, LoRA for most.
        init_cfg: As in MMEngine.

    Attributes:
        watchers: Called with the views of every training step when its losses are there.
        together: Which images go through fixed parts at once.

    Raises:
        ForgettingError: The model cannot be tuned so, the method, the tuner or one of their
            settings is unknown or not possible, or a loaded checkpoint does not fit.
    """

    model_key: str
    """Name of the attribute that holds the plain model, and of its keys in checkpoints."""
    frozen_parts: tuple[str, ...] = ()
    """Parts of the plain model that carry no adapter unless ``tune`` says otherwise."""
    images_together: int = 1
    """How many images go through fixed parts at once, where that changes nothing."""
    plain_config: Mapping[str, Any]
    """Config of the plain model."""

    def __init__(
        self, plain: BaseModel, method: dict, tune: dict | None, init_cfg: dict | None
    ) -> None:
        super().__init__(data_preprocessor=plain.data_preprocessor, init_cfg=init_cfg)
        setattr(self, self.model_key, plain)
        self.method = build_method(method)
        self.tune = build_tuner(self.method.tune if tune is None else tune)
        self.tune.attach(plain, self.frozen_parts)
        self.method.check(self.tune)
        self._register_load_state_dict_pre_hook(self._make_room_for_a_seal)
        self._register_load_state_dict_pre_hook(self._accept_plain_checkpoint)
        self.watchers: list[Callable[[Mapping[str, View], Context], None]] = []
        self.together = Together(self.images_together)
        self._context: Context | None = None
        self._partition: ClassPartition | None = None
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
    def class_layers(self) -> list[nn.Module]:
        """The layers whose scores become predictions: what :meth:`sealed` takes classes from.

        A family that cannot tell them has none, and its models cannot be sealed.
        """
        return []

    @abstractmethod
    def views(
        self,
        inputs: Any,
        data_samples: list,
        sides: Sequence[str] = SIDES,
        teachers: Sequence[str] = (),
    ) -> dict[str, View]:
        """The two sides of a batch in which every sample says its ``view``.

        Args:
            inputs: What the data preprocessor makes of a batch.
            data_samples: Likewise.
            sides: The sides that are wanted; images of another cost nothing.
            teachers: Whose outputs are wanted as well, see :meth:`~mmgslora.tuning.Tuner.teacher`.

        Raises:
            ForgettingError: A batch holds no image of a side.
        """

    @abstractmethod
    def relabelled(self, sample: Any, draw: Callable[[Tensor], Tensor]) -> Any:
        """A copy of a data sample with other true labels.

        Args:
            sample: The data sample of one image.
            draw: Gives the new labels for the old ones, (k,) to (k,).
        """

    @property
    def plain_model(self) -> nn.Module:
        """The wrapped model itself, with what the tuner put into it."""
        return getattr(self, self.model_key)

    def untrained(self, seed: int) -> nn.Module:
        """The plain model with random weights, the same ones for a seed."""
        return untrained(self.plain_config, seed).to(next(self.parameters()).device)

    @property
    def context(self) -> Context:
        """The moment of the run, for the method.

        Raises:
            ForgettingError: No task has begun.
        """
        partition = ClassPartition.current()
        if partition is None:
            raise ForgettingError(
                'No forgetting task has begun; train with ContinualForgettingLoop, '
                'which says which classes go and which stay.'
            )
        if self._partition != partition:
            device = next(self.parameters()).device
            groups = ('forget', 'retain', 'old', 'missing')
            labels = {g: torch.tensor(partition.labels(g), device=device).long() for g in groups}
            self._context = Context(self, Task(partition.task, partition.classes, **labels))
            self._partition = partition
        return self._context

    def init_weights(self) -> None:
        """Load what the plain model's ``init_cfg`` names; a random one has nothing to forget."""
        if self.plain_model.init_cfg is not None:
            self.plain_model.init_weights()
            self.tune.begin_task()

    def train(self, mode: bool = True) -> ForgettingModel:
        super().train(mode)
        self.plain_model.eval()
        if mode and self.method.dropout:
            frozen = tuple(self.frozen_parts)
            for name, module in self.plain_model.named_modules():
                if isinstance(module, _DROPS) and not (frozen and name.startswith(frozen)):
                    module.train()
        return self

    def forward(
        self, inputs: Any, data_samples: list | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list | tuple:
        """The three modes of MMEngine; 'loss' takes a batch of both views (see PairedSampler)."""
        if mode != 'loss':
            return self.plain_model(inputs, data_samples, mode=mode)
        method, context = self.method, self.context
        samples = method.prepare(data_samples, context)
        views = self.views(inputs, samples, method.sides_of(context), method.teachers)
        losses = method.losses(views, context)
        if torch.is_grad_enabled() and not any(x.requires_grad for x in losses.values()):
            self.tune.check_gradients()  # else PyTorch says so of the loss, in words of its own
        for watch in self.watchers:
            watch(views, context)
        return losses

    @contextmanager
    def sealed(self, labels: Sequence[int]) -> Iterator[None]:
        """Within, the head cannot name these classes (:func:`~mmgslora.models.seal_layer`).

        Afterwards it is bit for bit what it was.

        Args:
            labels: The classes.

        Raises:
            ForgettingError: The model has no layer that can be sealed.
        """
        layers = list(dict.fromkeys(self.class_layers))
        if not layers:
            raise ForgettingError(
                f'The head of a {type(self.plain_model).__name__} cannot be sealed; leave '
                'train_cfg.seal=False.'
            )
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

    @staticmethod
    def _rows_of(side: str, samples: list) -> list[int]:
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
        given = {key.removeprefix(prefix): value for key, value in state.items()}
        plain = self.plain_model
        model = f'{type(plain).__name__} of {self.num_classes} classes'
        weights = fitting_weights(
            given, plain.state_dict(), model, self.tune.owns, [self.model_key]
        )
        state.clear()
        own = f'{prefix}{self.model_key}.'
        state.update({f'{own}{key}': value for key, value in weights.items()})


def taken(inputs: Any, samples: list, sides: Sequence[str]) -> tuple[Any, list]:
    """Of a batch the images of some sides alone, in their order."""
    rows = [i for i, sample in enumerate(samples) if sample.metainfo.get('view') in sides]
    if len(rows) == len(samples):
        return inputs, samples
    picked = inputs[rows] if isinstance(inputs, Tensor) else [inputs[i] for i in rows]
    return picked, [samples[i] for i in rows]
