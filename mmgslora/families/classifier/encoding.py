"""From images to the outputs of a classifier, with nothing computed twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmgslora.families.cache import FeatureCache
from mmgslora.families.classifier.blocks import after_blocks, block_modules
from mmgslora.families.content import Identified
from mmgslora.families.passes import Call, gives, recorded, standing_in
from mmgslora.families.stages import Part, Stages
from mmgslora.families.together import Gave, Together, joined
from mmgslora.families.view import Outputs
from mmgslora.tuning import Tuner


class Encoding:
    """Runs a classifier, and keeps what its blocks give while they do not learn (ours).

    The stages are the transformer blocks, with all that is outside of them in the first, and the
    head. What comes up to the first block that learns is computed once per image, and so is all
    that a teacher says, in passes as :class:`~mmgslora.families.together.Together` makes them. A
    block is continued from only where that gives, to the bit, what the whole pass gives.

    Args:
        tune: What of the classifier may change.
        cache: Where to keep what stages give; one of 0 bytes runs every batch as it is.
        together: Runs fixed stages for several images at once.
    """

    def __init__(self, tune: Tuner, cache: FeatureCache, together: Together) -> None:
        self.cache = cache
        self.together = together
        self.stages = Stages(tune, classifier_stages, cache.keep_only)
        self._continued: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()

    def outputs(self, classifier: nn.Module, batch: Identified) -> Outputs:
        """Logits (n, C) and embeddings (n, D), with a row for each image after every block.

        Args:
            classifier: The classifier, or a teacher of it.
            batch: n images (3, H, W).
        """
        images = batch.images
        stages = self.stages.fixed(classifier) if self.cache.max_bytes else {}
        *_, last = stages or [None]
        if last is None:
            return _outputs(classifier, images)
        # Every process has to ask the others, and only then each its own images.
        kinds = [content[1:] for content in batch.contents]
        self.together.begin(kinds, images[0][0].numel())
        if not self._continues(classifier, last, images[0][None]):
            return _outputs(classifier, images)
        known = joined(self._known(classifier, batch, stages))
        if last == 'head':
            logits, embeddings, *rows = known
            return Outputs(logits, embeddings, states=tuple(rows))
        return _outputs(classifier, images, last, known)

    def _known(
        self, classifier: nn.Module, batch: Identified, stages: Mapping[str, tuple]
    ) -> list[tuple[Tensor, ...]]:
        """What the last fixed stage gives for every image (3, H, W), see :func:`_stages`."""
        images, contents = batch.images, batch.contents
        names = list(stages)
        known: dict[Hashable, tuple[Tensor, ...]] = {}
        missing: dict[tuple, list[int]] = {}
        for row, content in enumerate(contents):
            if content in known:
                continue
            found = ((name, self.cache.find((stages[name], content))) for name in names[::-1])
            start, given = next((x for x in found if x[1]), (None, ()))
            if start and not self._continues(classifier, start, images[row][None]):
                start, given = None, ()
            known[content] = given
            if start != names[-1]:
                missing.setdefault((start, *content[1:]), []).append(row)

        def forward(start: str | None, rows: list[int]) -> Gave:
            given = joined(known[contents[row]] for row in rows)
            some = torch.stack([images[row] for row in rows])
            with torch.no_grad():
                return _stages(classifier, some, names[-1], start, given)

        for kind, rows in missing.items():
            for row, gave in self.together.run(rows, kind, partial(forward, kind[0])):
                content = contents[row]
                known[content] = gave.pop(names[-1])
                for name, tensors in gave.items():  # what the model that learns may ask for next
                    self.cache.keep((stages[name], content), tensors, spare=True)
                self.cache.keep((stages[names[-1]], content), known[content])
        return [known[content] for content in contents]

    def _continues(self, classifier: nn.Module, stage: str, image: Tensor) -> bool:
        """Whether a pass that begins with what a stage gives is the whole pass, bit for bit.

        It is not where blocks are no chain, as with connections around several of them.
        """
        if stage == 'head':
            return True
        known = self._continued.setdefault(classifier, {})
        if stage not in known:
            names = list(block_modules(classifier))
            # With gradients: autocast keeps the weights it has cast, and those of a pass without
            # would have none in the pass that is to learn (PyTorch issue 112583).
            gave = _stages(classifier, image, 'head')
            known[stage] = gave.keys() >= set(names[: names.index(stage) + 1]) and torch.equal(
                _outputs(classifier, image, stage, gave[stage]).logits, gave['head'][0]
            )
        return known[stage]


def classifier_stages(classifier: nn.Module) -> dict[str, list[Part]]:
    """For :class:`~mmgslora.families.stages.Stages`: the transformer blocks, then the head.

    What is outside of the blocks, before, between or after them, counts to the first stage.
    """
    blocks = block_modules(classifier)
    staged = {name: [Part(block)] for name, block in blocks.items()} | {'head': []}
    inside = {module for block in blocks.values() for module in block.modules()}
    first = next(iter(staged.values()))
    first += [Part(module, False) for module in classifier.modules() if module not in inside]
    return staged


def _outputs(
    classifier: nn.Module,
    images: Sequence[Tensor] | Tensor,
    start: str | None = None,
    given: Sequence[Tensor] = (),
) -> Outputs:
    """A pass; where it is given what a block gives, and the rows so far, from there on."""
    with after_blocks(classifier, images) as seen, _from(classifier, start, given):
        now = Outputs(*classifier(images))
    # Some blocks fold positions into the batch.
    rows = [row for row in seen.values() if len(row) == len(images)]
    now.states = (*given[1:], *rows[len(given[1:]) :])
    return now


def _stages(
    classifier: nn.Module,
    images: Tensor,
    until: str,
    start: str | None = None,
    given: Sequence[Tensor] = (),
) -> Gave:
    """What the stages from one to another give for n images; nothing after that is run.

    Of a block that is its output, of the head logits and embedding, and of both the rows so far.
    Blocks that do not turn a tensor into another of its shape are left out.
    """
    blocks = block_modules(classifier)
    with (
        after_blocks(classifier, images) as seen,
        _from(classifier, start, given),
        recorded(blocks, until) as calls,
    ):
        calls['head'] = Call((images,), classifier(images))
    rows = [*given[1:], *list(seen.values())[len(given[1:]) :]]
    gave = {
        name: (calls[name].output, *rows[:number])
        for number, name in enumerate(blocks, 1)
        if name in calls and number > len(given[1:]) and _keeps_shape(calls[name], len(images))
    }
    if 'head' in calls:
        gave['head'] = (*calls['head'].output, *(row for row in rows if len(row) == len(images)))
    return gave


@contextmanager
def _from(classifier: nn.Module, start: str | None, given: Sequence[Tensor]) -> Iterator[None]:
    """Within, a block gives what is given, and those before it what they are asked."""
    forwards = {}
    for name, block in block_modules(classifier).items() if start else ():
        forwards[block] = gives(given[0]) if name == start else _same
        if name == start:
            break
    with standing_in(forwards):
        yield


def _same(x: Tensor, *_, **__) -> Tensor:
    return x


def _keeps_shape(call: Call, images: int) -> bool:
    """Whether a block turned a tensor of so many images into another of its shape."""
    before, after = next(iter(call.args), None), call.output
    tensors = isinstance(before, Tensor) and isinstance(after, Tensor)
    return tensors and len(after) == images and before.shape == after.shape
