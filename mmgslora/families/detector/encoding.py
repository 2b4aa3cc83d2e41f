"""From images to what the head of a DETR-like detector reads, with nothing computed twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property

import torch
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmgslora.families.cache import FeatureCache, content_of, weights_version
from mmgslora.tuning import Tuner


class ImageBatch:
    """A batch as the detector sees it, with what identifies each of its images."""

    def __init__(self, inputs: Tensor, samples: SampleList) -> None:
        self.inputs, self.samples = inputs, samples

    @cached_property
    def contents(self) -> list[tuple]:
        """Padding is part of what the detector sees."""
        return [
            (content_of(image), tuple(image.shape), tuple(sample.img_shape))
            for image, sample in zip(self.inputs, self.samples)
        ]

    def only(self, index: int) -> ImageBatch:
        """One image of the batch, as padded there."""
        one = ImageBatch(self.inputs[index : index + 1], self.samples[index : index + 1])
        one.contents = self.contents[index : index + 1]
        return one


class Encoding:
    """Runs backbone, neck and transformer, and keeps what does not learn (ours).

    Kept are features of backbone and neck, and the encoder's output of a teacher, or of the
    detector itself while no group of its encoder is in use: everything before the first block
    that learns is the teacher's, exactly. Images are encoded one by one for this, so that a value
    does not depend on the batch in which it was first asked for.

    Args:
        tune: What of the detector may change.
        trunk: Names of the parts before the transformer.
        cache: Where to keep features.
    """

    def __init__(self, tune: Tuner, trunk: Sequence[str], cache: FeatureCache) -> None:
        self.tune, self.trunk, self.cache = tune, trunk, cache

    def head_inputs(self, detector: nn.Module, images: ImageBatch, queries: dict) -> dict:
        """What ``bbox_head`` reads, as the transformer of MMDetection gives it.

        Args:
            detector: The detector, or a teacher of it.
            images: The batch.
            queries: Filled by the first pass, decoded by all, see :func:`_shared_queries`.
        """
        with _shared_queries(detector, queries), ExitStack() as stack:
            if not all(self.is_fixed(part) for part in self._trunk(detector)):
                features = detector.extract_feat(images.inputs)
            elif not self.is_fixed(detector.encoder):
                features = self._features(detector, images)
            else:
                memory, features = self._encoded(detector, images)
                stack.enter_context(_given_memory(detector.encoder, memory))
            return detector.forward_transformer(features, images.samples)

    def _trunk(self, detector: nn.Module) -> list[nn.Module]:
        return [getattr(detector, part) for part in self.trunk if hasattr(detector, part)]

    def _version(self, parts: Sequence[nn.Module]) -> tuple:
        return tuple(weights_version(part, self.tune.owns) for part in parts)

    def is_fixed(self, part: nn.Module) -> bool:
        """Whether a part gives the same for an image whenever it is asked, until it is written to.

        The whole model is in eval mode but for dropout where a method wants it.
        """
        return not self.tune.learns(part) and not any(m.training for m in part.modules())

    def _features(self, detector: nn.Module, images: ImageBatch) -> tuple[Tensor, ...]:
        """Feature maps of the neck, each (b, C, h, w), without gradient."""
        version = self._version(self._trunk(detector))
        rows = [
            self.cache.get(
                (version, content),
                lambda i=i: tuple(detector.extract_feat(images.inputs[i : i + 1])),
            )
            for i, content in enumerate(images.contents)
        ]
        return tuple(torch.cat(level) for level in zip(*rows))

    def _encoded(
        self, detector: nn.Module, images: ImageBatch
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The encoder's output (b, n, D), and maps of the neck's shapes that hold nothing."""
        version = self._version([*self._trunk(detector), detector.encoder])

        def encode(i: int) -> tuple[Tensor, ...]:
            own = images.only(i)
            features = self._features(detector, own)
            inputs, _ = detector.pre_transformer(features, own.samples)
            # What stands for a map takes one number, whatever its shape.
            shapes = (x.new_zeros(()).expand(x.shape) for x in features)
            return detector.forward_encoder(**inputs)['memory'], *shapes

        rows = [
            self.cache.get((version, content), lambda i=i: encode(i))
            for i, content in enumerate(images.contents)
        ]
        memory, *shapes = zip(*rows)
        maps = tuple(level[0].expand(len(rows), *level[0].shape[1:]) for level in shapes)
        return torch.cat(memory), maps


@contextmanager
def _shared_queries(detector: nn.Module, first: dict) -> Iterator[None]:
    """Within, every pass decodes the queries of the first: row i is the same query in all.

    Two-stage detectors choose their queries from the encoder's output, so a teacher would choose
    others, in another order, and comparing it row by row would mean nothing.

    Args:
        detector: The detector that decodes, the student or a teacher.
        first: What the first pass decoded; empty before it.
    """

    def forward_decoder(memory: Tensor, **inputs) -> dict:
        if not first:
            first.update(inputs)
        return type(detector).forward_decoder(detector, memory=memory, **first)

    detector.forward_decoder = forward_decoder
    try:
        yield
    finally:
        del detector.forward_decoder


@contextmanager
def _given_memory(encoder: nn.Module, memory: Tensor) -> Iterator[None]:
    """Within, the encoder gives this, whatever it is asked."""
    encoder.forward = lambda *args, **kwargs: memory
    try:
        yield
    finally:
        del encoder.forward
