"""What an audit needs of a model, whatever family it belongs to."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgslora.errors import ForgettingError
from mmgslora.families.untrained import untrained
from mmgslora.models import seal_layer


@dataclass
class Objects:
    """What a model makes of true objects, one row per object (per image for a classifier).

    Attributes:
        labels: (n,) true labels.
        images: (n,) index of each object's image in its data set.
        features: (n, D) float32 by name of the layer, in the order of the layers; the last is
            what the classifier head reads.
        scores: (n, C) the best score of each class among the predictions on the object, 0 to 1.
        log_probs: (n, C) or (n, C + 1) log-probabilities of the one prediction that sits on the
            object, rows sum to 1; a column after the classes stands for "no object".
        overlaps: (n,) IoU of that prediction's box with the object; None without boxes.
    """

    labels: np.ndarray
    images: np.ndarray
    features: dict[str, np.ndarray] = field(repr=False)
    scores: np.ndarray = field(repr=False)
    log_probs: np.ndarray = field(repr=False)
    overlaps: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray) -> Objects:
        """The objects of a boolean mask or of row numbers."""
        return Objects(
            labels=self.labels[rows],
            images=self.images[rows],
            features={name: values[rows] for name, values in self.features.items()},
            scores=self.scores[rows],
            log_probs=self.log_probs[rows],
            overlaps=None if self.overlaps is None else self.overlaps[rows],
        )

    def of(self, labels: Sequence[int]) -> Objects:
        """The objects with one of these true labels."""
        return self[np.isin(self.labels, labels)]


class Images(ABC):
    """Labelled images in a fixed order, with the true labels of each."""

    classes: tuple[str, ...]
    batch_size: int
    """Images per forward pass: with another one a detector pads, and answers, otherwise."""
    seen_through: str
    """The key of a data set's config that says how an image becomes a model's input."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def labels(self, index: int) -> np.ndarray:
        """(m,) true labels of one image."""

    @cached_property
    def _holding(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for index in range(len(self)):
            for label in np.unique(self.labels(index)):
                found.setdefault(int(label), []).append(index)
        return found

    def holding(self, labels: Sequence[int]) -> np.ndarray:
        """Indices of the images with at least one of these labels, ascending."""
        found = {index for label in labels for index in self._holding.get(int(label), ())}
        return np.array(sorted(found), dtype=int)

    def draw(self, labels: Sequence[int], count: int, seed: int) -> np.ndarray:
        """Indices of ``count`` images that hold one of the labels, or of all there are (ours).

        Classes take turns, each giving its next image of a random order, so that rare classes are
        there too. The draws of one seed are nested: the first image of 4 is that of 1.
        """
        rng = np.random.default_rng(seed)
        turns = [iter(rng.permutation(self.holding([label]))) for label in rng.permutation(labels)]
        drawn: dict[int, None] = {}
        while turns and len(drawn) < count:
            for turn in list(turns):
                image = next((int(i) for i in turn if int(i) not in drawn), None)
                if image is None:
                    turns.remove(turn)
                elif len(drawn) < count:
                    drawn[image] = None
        return np.array(list(drawn), dtype=int)


class AuditedModel(ABC):
    """A plain model under audit, without LoRA: what is measured of it, what can be done with it.

    ``images`` are always indices into the :class:`Images` beside them, None standing for all.

    Args:
        model: The model with its weights.
        classes: Names of its classes in label order.
        config: Config of the model; :meth:`untrained` needs it. Defaults to None.
    """

    metric: str
    """'AP' or 'Acc': what :meth:`evaluate` returns, in percent."""
    clip_norm: float
    """Largest norm of the gradient while relearning."""
    new_bias: float = 0.0
    """Bias of a class in a head that was never trained."""

    def __init__(
        self, model: nn.Module, classes: Sequence[str], config: dict | None = None
    ) -> None:
        self.model = model.eval()
        self.classes = tuple(classes)
        self.config = config

    @abstractmethod
    def objects(self, data: Images, images: Sequence[int] | None = None) -> Objects:
        """Every true object of these images, images in the given order."""

    @abstractmethod
    def evaluate(
        self,
        data: Images,
        images: Sequence[int] | None = None,
        gone: Sequence[int] = (),
    ) -> dict[str, float]:
        """AP or accuracy of every class with an object in these images, per name, in percent.

        Of the classes in ``gone`` every prediction counts, whatever its score; of the others
        those that the model lists.
        """

    @abstractmethod
    def loss(self, data: Images, images: Sequence[int], labels: Sequence[int]) -> Tensor:
        """Training loss of the model's own, on the objects with these labels alone."""

    @property
    @abstractmethod
    def class_rows(self) -> list[tuple[nn.Parameter, nn.Parameter | None]]:
        """Weight (C or more, D) and bias of every layer that scores classes, each once."""

    @property
    @abstractmethod
    def class_layers(self) -> list[nn.Module]:
        """The layers whose scores become predictions."""

    def on_classes(self, classes: Sequence[str]) -> AuditedModel:
        """The same model, asked of classes of other names."""
        other = copy.copy(self)
        other.classes = tuple(classes)
        return other

    @torch.no_grad()
    def with_new_rows(self, labels: Sequence[int], seed: int) -> AuditedModel:
        """A copy whose head is a new one for these classes: small random rows (ours).

        What an attacker does who finds the rows of a class cut away or spoilt.
        """
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(seed)
        for weight, bias in other.class_rows:
            rows = torch.empty(len(labels), weight.shape[1]).normal_(std=0.01, generator=generator)
            weight[list(labels)] = rows.to(weight)
            if bias is not None:
                bias[list(labels)] = self.new_bias
        for layer in other.class_layers:
            if getattr(layer, 'sealed', None) is not None:  # a new head has no seal
                layer.sealed[list(labels)] = 0
        return other

    def relearn(
        self,
        data: Images,
        images: Sequence[int],
        labels: Sequence[int],
        steps: Sequence[int],
        lr: float,
        batch_size: int,
        seed: int,
    ) -> Iterator[tuple[int, AuditedModel]]:
        """Train a copy on these images, on their objects with these labels alone.

        AdamW with weight decay 1e-4; all weights learn, batch-norm statistics stay. Two models
        with the same arguments see the same images in the same order.

        Args:
            data: Where the images come from.
            images: Indices of the images to train on.
            labels: The labels of the objects that are shown.
            steps: Numbers of steps, ascending, after which the copy is handed out.
            lr: Learning rate.
            batch_size: Most images per step; images come in shuffled passes.
            seed: Seed of the order, of dropout and of whatever else the loss draws.

        Yields:
            The number of steps and the copy as it is then. It is trained on afterwards.

        Raises:
            ForgettingError: The accelerator's memory does not hold a step on so many images.
        """
        student = copy.copy(self)
        student.model = copy.deepcopy(self.model).requires_grad_(True)
        optimizer = torch.optim.AdamW(student.model.parameters(), lr=lr, weight_decay=1e-4)
        order = _passes(np.asarray(images), batch_size, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for step in range(max(steps) + 1):
                if step:
                    student._learn(data, next(order), labels, optimizer)
                if step in steps:
                    student.model.eval()
                    yield step, student

    def _learn(
        self,
        data: Images,
        images: Sequence[int],
        labels: Sequence[int],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """One step of relearning.

        All images at once: a detector's loss is divided by the objects of its batch, so that
        gradients gathered over parts of it would be others.
        """
        _training_mode(self.model)
        try:
            loss = self.loss(data, images, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            optimizer.step()
        except torch.cuda.OutOfMemoryError as error:
            raise ForgettingError(
                f'Relearning trains all weights on {len(images)} images at once, which is more '
                'than the memory holds; take fewer, the same for every model of the audit: '
                f'--cfg-options relearning_batch={max(1, len(images) // 4)}.'
            ) from error

    def untrained(self, seed: int) -> AuditedModel:
        """The same architecture with random weights, a model that never saw any data."""
        other = copy.copy(self)
        other.model = untrained(self.config, seed)
        other.model.to(next(self.model.parameters()).device).eval()
        return other

    def _batches(self, data: Images, images: Sequence[int] | None) -> Iterator[np.ndarray]:
        images = np.arange(len(data)) if images is None else np.asarray(images)
        for start in range(0, len(images), data.batch_size):
            yield images[start : start + data.batch_size]


@torch.no_grad()
def without_rows(audited: AuditedModel, labels: Sequence[int]) -> AuditedModel:
    """A copy whose head has no rows for these classes, and nothing else changed (ours).

    With an original it is the control of every method, for it costs nothing: AP of the classes is
    0, all others are untouched, and all that the layers below know is still there.
    """
    other = copy.copy(audited)
    other.model = copy.deepcopy(audited.model)
    for layer in dict.fromkeys(other.class_layers):
        seal_layer(layer, labels)
    return other


def same_inside(one: AuditedModel, other: AuditedModel) -> bool:
    """Whether two models have the same weights, not counting the rows that score classes."""
    return all(torch.equal(*pair) for pair in zip(_inside(one), _inside(other)))


def _inside(audited: AuditedModel) -> list[Tensor]:
    rows = {id(part) for layer in audited.class_rows for part in layer}
    return [value for value in audited.model.parameters() if id(value) not in rows]


def per_class_values(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of an evaluator's metrics those of the classes, by name."""
    first = 'per_class/'
    return {key[len(first) :]: value for key, value in metrics.items() if key.startswith(first)}


def _training_mode(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _passes(images: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Batches without end, of shuffled passes over the images; none is left out of a pass."""
    rng = np.random.default_rng(seed)
    size = min(batch_size, len(images))
    waiting = np.array([], dtype=int)
    while True:
        if len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(images)])
        yield waiting[:size]
        waiting = waiting[size:]
