"""What an audit needs of a model, whatever family it belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


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
    """

    labels: np.ndarray
    images: np.ndarray
    features: dict[str, np.ndarray] = field(repr=False)
    scores: np.ndarray = field(repr=False)
    log_probs: np.ndarray = field(repr=False)

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
        )

    def of(self, labels: Sequence[int]) -> Objects:
        """The objects with one of these true labels."""
        return self[np.isin(self.labels, labels)]


class Images(ABC):
    """Labelled images in a fixed order, with the true labels of each."""

    classes: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def labels(self, index: int) -> np.ndarray:
        """(m,) true labels of one image."""

    def holding(self, labels: Sequence[int]) -> np.ndarray:
        """Indices of the images with at least one of these labels."""
        return np.array(
            [i for i in range(len(self)) if np.isin(self.labels(i), labels).any()], dtype=int
        )


class Subject(ABC):
    """A plain model under audit: what is measured of it and what an attacker can do with it.

    ``images`` are always indices into the :class:`Images` beside them, None standing for all.
    """

    classes: tuple[str, ...]
    metric: str
    """'AP' or 'Acc': what :meth:`evaluate` returns, in percent."""

    @abstractmethod
    def objects(self, data: Images, images: Sequence[int] | None = None) -> Objects:
        """Every true object of these images, images in the given order."""

    @abstractmethod
    def evaluate(self, data: Images, images: Sequence[int] | None = None) -> dict[str, float]:
        """AP or accuracy per class name, in percent; classes without an object are absent."""

    @abstractmethod
    def relearn(
        self,
        data: Images,
        images: Sequence[int],
        labels: Sequence[int],
        steps: Sequence[int],
        lr: float,
        batch_size: int,
        seed: int,
    ) -> Iterator[tuple[int, Subject]]:
        """Train a copy on these images, on their objects with these labels alone.

        All weights learn; batch-norm statistics stay. Two subjects with the same arguments see
        the same images in the same order.

        Args:
            data: Where the images come from.
            images: Indices of the images to train on.
            labels: The labels of the objects that are shown.
            steps: Numbers of steps, ascending, after which the copy is handed out.
            lr: Learning rate of AdamW.
            batch_size: Most images per step; a pass over the images is reshuffled.
            seed: Seed of the order.

        Yields:
            The number of steps and the copy as it is then, in a state to be measured.
        """

    @abstractmethod
    def untrained(self, seed: int) -> Subject:
        """The same architecture with random weights, the model that never saw any data."""
