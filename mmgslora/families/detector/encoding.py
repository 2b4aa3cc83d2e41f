"""From images to the outputs of a DETR-like detector, with nothing computed twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmgslora.families.cache import FeatureCache
from mmgslora.families.content import Identified
from mmgslora.families.detector.stages import decoder_stages, detector_stages
from mmgslora.families.passes import Call, gives, recorded, standing_in
from mmgslora.families.stages import Stages
from mmgslora.families.together import Gave, Together, joined
from mmgslora.tuning import Tuner


class ImageBatch:
    """A batch as the detector sees it, with what identifies each of its images."""

    def __init__(self, inputs: Tensor, samples: SampleList) -> None:
        self.inputs, self.samples = inputs, samples

    @cached_property
    def contents(self) -> list[tuple]:
        """Padding is part of what the detector sees."""
        shapes = (tuple(sample.img_shape) for sample in self.samples)
        return list(zip(Identified(self.inputs).contents, shapes))

    def of(self, rows: Sequence[int]) -> ImageBatch:
        """Some of the images, as padded in the batch."""
        picked = ImageBatch(self.inputs[list(rows)], [self.samples[i] for i in rows])
        picked.contents = [self.contents[i] for i in rows]
        return picked

    def rows(self) -> dict[tuple, int]:
        """Where each of the contents is first."""
        return {content: i for i, content in reversed(list(enumerate(self.contents)))}


class Encoding:
    """Runs a detector, and keeps what its parts give while they do not learn (ours).

    The stages are: backbone and neck, the encoder, of each decoder layer the attention and the
    rest, the head. What lies before the first stage that learns stays what it was, exactly, and so
    does all of a teacher: it is computed once per image, and once for all models with the same
    weights up to there, in passes as :class:`~mmgslora.families.together.Together` makes them. What
    belongs to weights that were written to since is dropped; so are maps of the trunk once the
    encoder of the model is fixed, and what the encoder gives once every layer's attention is.

    Args:
        tune: What of the detector may change.
        cache: Where to keep what stages give.
        together: Runs fixed stages for several images at once.
    """

    def __init__(self, tune: Tuner, cache: FeatureCache, together: Together) -> None:
        self.tune, self.cache = tune, cache
        self.together = together
        self.stages = Stages(tune, detector_stages, cache.keep_only)
        # By the shape of an image: those of the trunk's maps and of what the encoder makes of them.
        self._shapes: dict[torch.Size, list[torch.Size]] = {}

    def outputs(
        self, detector: nn.Module, images: ImageBatch, queries: dict
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each decoder layer: embeddings (b, q, D), logits (b, q, C) and boxes (b, q, 4).

        Where nothing learns it is the last layer alone, all that is kept.

        Args:
            detector: The detector, or a teacher of it.
            images: The batch.
            queries: Filled by the first pass and decoded by all, see :func:`_shared_queries`.
        """
        stages = self.stages.fixed(detector)
        # A two-stage detector chooses queries by what its encoder gives: another's are not its own.
        chosen = bool(queries) and getattr(detector, 'as_two_stage', False)
        if chosen and queries['stages'].get('encoder') != stages.get('encoder', ()):
            stages = {name: key for name, key in stages.items() if name in ('trunk', 'encoder')}
        self.together.begin(
            [kind_of(content) for content in images.contents], images.inputs[0, 0].numel()
        )
        if 'head' in stages and hasattr(detector, 'cache_dict'):
            # Which queries were dropped as duplicates is left behind by a pass of the whole batch.
            stages = {name: key for name, key in stages.items() if name != 'head'}
        if 'head' in stages:
            known = self._known(detector, images, stages, ['head'])
            return [joined(stage['head'] for stage in known)]
        first = queries.setdefault('stages', stages)
        given: dict[nn.Module, Callable] = {}
        if 'encoder' in stages:
            given, features = self._given(detector, images, stages, first)
        elif 'trunk' in stages:
            features = joined(self._trunk(detector, images, stages))
        else:
            features = detector.extract_feat(images.inputs)
        with _shared_queries(detector, queries), standing_in(given):
            return _layers(detector, detector.forward_transformer(features, images.samples))

    def _trunk(
        self, detector: nn.Module, images: ImageBatch, stages: dict[str, tuple]
    ) -> list[tuple[Tensor, ...]]:
        """Feature maps (1, C, h, w) of every image."""
        known = {x: self.cache.find((stages['trunk'], x)) for x in images.contents}
        missing: dict[Hashable, list[int]] = {}
        for content, row in images.rows().items():
            if known[content] is None:
                missing.setdefault(('trunk', kind_of(content)), []).append(row)

        def forward(rows: list[int]) -> Gave:
            with torch.no_grad():
                return {'trunk': tuple(detector.extract_feat(images.of(rows).inputs))}

        for row, gave in self._together(missing, forward):
            content = images.contents[row]
            known[content] = self.cache.keep((stages['trunk'], content), gave['trunk'])
        return [known[content] for content in images.contents]

    def _known(
        self,
        detector: nn.Module,
        images: ImageBatch,
        stages: dict[str, tuple],
        wanted: Collection[str],
    ) -> list[dict[str, tuple[Tensor, ...]]]:
        """What some of the fixed stages after the trunk give for every image."""
        keys = {name: key for name, key in stages.items() if name != 'trunk'}
        known, missing = {}, {}
        for content, row in images.rows().items():
            known[content] = {name: self.cache.find((keys[name], content)) for name in wanted}
            if None in known[content].values():
                # What another model, of the same weights up to here, has given already.
                found = {name: self.cache.find((key, content)) for name, key in keys.items()}
                known[content] = {name: x for name, x in found.items() if x}
                missing.setdefault((tuple(known[content]), kind_of(content)), []).append(row)

        def forward(rows: list[int]) -> Gave:
            some = images.of(rows)
            found = [known[content] for content in some.contents]
            given = {name: torch.cat([x[name][0] for x in found]) for name in found[0]}
            if 'encoder' in given:
                features, _ = self._stand_ins(some)
            else:
                features = joined(self._trunk(detector, some, stages))
            with (
                torch.no_grad(),
                _shared_queries(detector, {}),
                standing_in(_forwards(detector, given)),
                recorded(_lasts(detector), until=list(keys)[-1]) as calls,
            ):
                last = _layers(detector, detector.forward_transformer(features, some.samples))[-1]
                calls['head'] = Call((), last)
            gave = {n: x if n == 'head' else (x,) for n, (_, x) in calls.items()}
            self._shapes[images.inputs.shape[1:]] = [
                x.shape[1:] for x in (*features, *gave['encoder'])
            ]
            return gave

        for row, gave in self._together(missing, forward):
            content = images.contents[row]
            for name, tensors in gave.items():
                self.cache.keep((keys[name], content), tensors)
            known[content] = gave
        return [known[content] for content in images.contents]

    def _together(
        self, missing: Mapping[Hashable, list[int]], forward: Callable[[list[int]], Gave]
    ) -> Iterator[tuple[int, Gave]]:
        for kind, rows in missing.items():
            yield from self.together.run(rows, kind, forward)

    def _given(
        self,
        detector: nn.Module,
        images: ImageBatch,
        stages: dict[str, tuple],
        first: dict[str, tuple],
    ) -> tuple[dict[nn.Module, Callable], tuple[Tensor, ...]]:
        """What fixed parts give for a batch, and maps that have the shapes of the neck's alone.

        Args:
            detector: The detector, or a teacher of it.
            images: The batch.
            stages: Its fixed stages, as far as they are used.
            first: Those of the detector whose queries are decoded, which may still read the maps.
        """
        *_, last = stages
        wanted = [n for n in stages if n == last or not n.endswith('.attention')]
        wanted.remove('trunk')
        reads = 'encoder' not in first and first.get('trunk') == stages['trunk']
        spent = [] if reads else ['trunk']  # the largest of all, and asked for no more
        final = len(detector.decoder.layers) - 1
        if last == f'decoder.{final}.attention' and not getattr(detector, 'as_two_stage', False):
            wanted.remove('encoder')  # nothing is left that would read it
            spent.append('encoder')
        known = self._known(detector, images, stages, wanted)
        for content in images.contents:
            for name in spent:
                self.cache.drop((stages[name], content))
        maps, memory = self._stand_ins(images)
        given = {name: torch.cat([stage[name][0] for stage in known]) for name in wanted}
        return _forwards(detector, {'encoder': memory, **given}), maps

    def _stand_ins(self, images: ImageBatch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Maps, and what the encoder gives, in their shapes alone: one number, expanded."""
        zero = images.inputs.new_zeros(())
        shapes = self._shapes[images.inputs.shape[1:]]
        *maps, memory = (zero.expand(len(images.inputs), *shape) for shape in shapes)
        return tuple(maps), memory


def kind_of(content: tuple) -> tuple:
    """What of an image's content its pass depends on beside the pixels: shapes and types."""
    (_, *image), img_shape = content
    return (*image, img_shape)


def _layers(detector: nn.Module, inputs: dict) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(inputs['hidden_states'], *detector.bbox_head(**inputs)))


def _parts(detector: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    """The modules that stand for a stage: the last gives its output, all do when it is known."""
    return {'encoder': (detector.encoder,), **decoder_stages(detector)}


def _lasts(detector: nn.Module) -> dict[str, nn.Module]:
    """The modules that give what stages give."""
    return {name: modules[-1] for name, modules in _parts(detector).items()}


def _forwards(detector: nn.Module, known: Mapping[str, Tensor]) -> dict[nn.Module, Callable]:
    """What every module gives, where the outputs of these stages are known."""
    return {
        module: gives(known[name])
        for name, modules in _parts(detector).items()
        if name in known
        for module in modules
    }


@contextmanager
def _shared_queries(detector: nn.Module, first: dict) -> Iterator[None]:
    """Within, every pass decodes the queries of the first: row i is the same query in all.

    Two-stage detectors choose their queries from the encoder's output, so a teacher would choose
    others, in another order, and comparing it row by row would mean nothing.

    Args:
        detector: The detector that decodes, the student or a teacher.
        first: What the first pass decoded, under 'inputs'; empty before it.
    """

    def forward_decoder(memory: Tensor, **inputs) -> dict:
        decoded = first.setdefault('inputs', inputs)
        return type(detector).forward_decoder(detector, memory=memory, **decoded)

    detector.forward_decoder = forward_decoder
    try:
        yield
    finally:
        del detector.forward_decoder
