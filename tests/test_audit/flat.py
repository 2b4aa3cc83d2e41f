"""Points in the plane as images and two matrices as a model: audits with known answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgslora.families.audited_model import AuditedModel, Images, Objects

CLASSES = ('a', 'b', 'c', 'd')
CENTRES = np.array([[6.0, 0.0], [0.0, 6.0], [-6.0, 0.0], [0.0, -6.0]])


def make_objects(labels, log_probs=None, scores=None, **features) -> Objects:
    """Objects of which only what a test needs is given."""
    labels = np.asarray(labels)
    blank = np.zeros((len(labels), len(CLASSES)))
    return Objects(
        labels=labels,
        images=np.arange(len(labels)),
        features=features,
        scores=blank if scores is None else np.asarray(scores, dtype=float),
        log_probs=blank if log_probs is None else np.asarray(log_probs, dtype=float),
    )


class FlatImages(Images):
    """One object per image: a point around the centre of its class."""

    classes = CLASSES
    batch_size = 64

    def __init__(self, per_class: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.truth = np.tile(np.arange(len(CLASSES)), per_class)
        self.points = CENTRES[self.truth] + rng.normal(size=(len(self.truth), 2))

    def __len__(self) -> int:
        return len(self.truth)

    def labels(self, index: int) -> np.ndarray:
        return self.truth[index : index + 1]


class Flat(nn.Module):
    """Points -> their two axes, each as strong as the body has it -> one logit per class."""

    def __init__(self, body, head, bias) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.tensor(body, dtype=torch.float32))
        self.head = nn.Parameter(torch.tensor(head, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
        self.norm = nn.BatchNorm1d(2, affine=False)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        inside = self.norm(points) * self.body
        return inside, inside @ self.head.T + self.bias


class Head:
    """The head as a layer of its own."""

    def __init__(self, weight, bias) -> None:
        self.weight, self.bias = weight, bias


class FlatModel(AuditedModel):
    metric = 'Acc'
    clip_norm = 10.0

    def __init__(self, body, bias=(0.0, 0.0, 0.0, 0.0), head=CENTRES / 6) -> None:
        super().__init__(Flat(body, head, bias), CLASSES)

    def _look(self, data: FlatImages, images) -> tuple[np.ndarray, Tensor, Tensor]:
        images = np.arange(len(data)) if images is None else np.asarray(images)
        points = torch.from_numpy(data.points[images]).float()
        return images, *self.model(points)

    def objects(self, data, images=None) -> Objects:
        with torch.no_grad():
            images, inside, logits = self._look(data, images)
        log_probs = logits.log_softmax(-1).numpy()
        return Objects(
            labels=data.truth[images],
            images=images,
            features=dict(points=data.points[images], inside=inside.numpy()),
            scores=np.exp(log_probs),
            log_probs=log_probs,
        )

    def evaluate(self, data, images=None, gone: Sequence[int] = ()) -> dict:
        with torch.no_grad():
            images, _, logits = self._look(data, images)
        right = (logits.argmax(-1).numpy() == data.truth[images]) * 100.0
        return {
            name: right[data.truth[images] == label].mean()
            for label, name in enumerate(self.classes)
            if (data.truth[images] == label).any()
        }

    def loss(self, data, images, labels) -> Tensor:
        images = [i for i in images if data.truth[i] in labels]
        images, _, logits = self._look(data, images)
        return F.cross_entropy(logits, torch.from_numpy(data.truth[images]))

    @property
    def class_rows(self):
        return [(self.model.head, self.model.bias)]

    @property
    def class_layers(self):
        return [Head(self.model.head, self.model.bias)]

    def untrained(self, seed: int) -> FlatModel:
        rng = np.random.default_rng(seed)
        return FlatModel(rng.normal(size=2), head=rng.normal(size=(4, 2)))


FORGOTTEN = [0, 2]
_SEES_ALL, _SEES_B_D = (1.0, 1.0), (0.0, 1.0)
_NEVER = (-8.0, 0.0, -8.0, 0.0)


def original() -> FlatModel:
    return FlatModel(_SEES_ALL)


def oracle() -> FlatModel:
    """Blind to the axis on which the forgotten classes a and c lie, and without a head for them.

    Body and head have no gradient along that axis, so that relearning only ever calls all of them
    by one name.
    """
    return FlatModel(_SEES_B_D, _NEVER, head=CENTRES / 6 * [[0], [1], [0], [1]])


def head_cut() -> FlatModel:
    """The original, with the forgotten classes cut from the head alone."""
    return FlatModel(_SEES_ALL, _NEVER)
