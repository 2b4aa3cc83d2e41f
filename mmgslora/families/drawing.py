"""What a family draws of its answers before and after forgetting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from torch.utils.data import Dataset

from mmgslora.datasets.protocol import Protocol

Found = dict[str, Any]
"""What is kept of a prediction: plain numbers and lists, which a checkpoint can hold."""


@dataclass(frozen=True)
class BeforeAfter:
    """What is to be drawn.

    Attributes:
        infos: What the data set says of each image, from its ``get_data_info``.
        before: What was found in each before any forgetting.
        after: The same now.
        classes: Class names in label order.
        forget: Names of the classes forgotten so far.
    """

    infos: Sequence[dict]
    before: Sequence[Found]
    after: Sequence[Found]
    classes: Sequence[str]
    forget: Collection[str]


class Drawing(ABC):
    """Chooses images, reads predictions and draws them; a registry entry names its class.

    Args:
        score_thr: Score from which a prediction is drawn, where a family has many per image.
    """

    num_images: int
    """How many images are drawn where nobody says."""
    rule: str
    """Which images are chosen, as the end of 'The first test ...'."""

    def __init__(self, score_thr: float) -> None:
        self.score_thr = score_thr

    @abstractmethod
    def choose(
        self, dataset: Dataset, protocol: Protocol, look: Callable[[int], Found], count: int
    ) -> dict[int, Found]:
        """Indices of the images to draw, with what ``look`` finds in each before forgetting."""

    @abstractmethod
    def found(self, sample: Any) -> Found:
        """What of a predicted data sample is drawn."""

    @abstractmethod
    def figure(self, shown: BeforeAfter) -> Figure:
        """The images with both answers."""
