"""Passes of several images that give for each what it gives in any other company."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

_PIXELS = 512 * 512  # a larger image keeps a device busy alone

Gave = dict[str, tuple[Tensor, ...]]
"""What stages give for n images: tensors (n, ...) by the name of the stage."""


class Together:
    """Runs images several at a time, or one by one (ours).

    What is kept for an image must not depend on the batch in which it was first asked for: after a
    resume that is another. So every pass has the same number of images, filled up with the first of
    them, and images of a kind go together once a second pass, with one of them in every other place
    and less company, has given the same for each, to the bit. They are run one by one where it has
    not, and in a run whose first batch, in one of its processes, has images of several kinds,
    larger ones, or fewer than go together. That goes into every checkpoint: the first batch after a
    resume is another.

    Args:
        number: Images of a pass. More are faster as long as all of a batch have to be run; of a
            batch that is known but for one, that one takes as long as so many.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._usable: bool | None = None
        self._alike: dict[Hashable, bool] = {}

    def begin(self, kinds: Sequence[Hashable], pixels: int) -> None:
        """See a batch; the first one decides.

        Args:
            kinds: Of each image what it must have in common with others of its pass.
            pixels: Of an image.
        """
        if self._usable is None:
            fits = len(kinds) >= self.number and pixels <= _PIXELS and len(set(kinds)) == 1
            in_all = torch.tensor(int(fits))
            all_reduce(in_all, op='min')
            self._usable = bool(in_all)

    def state_dict(self) -> dict[str, Any]:
        """What must survive a kill."""
        return dict(usable=self._usable)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._usable = state.get('usable', self._usable)

    def run(
        self, rows: Sequence[int], kind: Hashable, forward: Callable[[list[int]], Gave]
    ) -> Iterator[tuple[int, Gave]]:
        """What a pass gives for each of these images.

        Args:
            rows: Their positions, all different.
            kind: What decides how they are run, besides the images.
            forward: A pass of some positions, of which one may come several times.
        """
        number = self.number if self._usable and self._alike.get(kind, True) else 1
        for start in range(0, len(rows), number):
            group = list(rows[start : start + number])
            filled = group + group[:1] * (number - len(group))
            gave = forward(filled)
            if number > 1 and kind not in self._alike:
                other = filled[1:2] + filled[:1] * (number - 1)
                same = _same(filled + other, gave, forward(other))
                if len(group) > 1 or not same:
                    self._alike[kind] = same
                if not same:
                    yield from self.run(rows[start:], kind, forward)
                    return
            for i, row in enumerate(group):
                # Copies: a slice would keep the whole pass in memory.
                yield row, {k: tuple(x[i : i + 1].clone() for x in v) for k, v in gave.items()}


def joined(rows: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """One batch of what stages gave for every image."""
    return tuple(torch.cat(parts) for parts in zip(*rows))


def _same(rows: Sequence[int], one: Gave, other: Gave) -> bool:
    """Whether two passes gave the same wherever they had the same image."""
    first = [rows.index(row) for row in rows]
    pairs = [pair for name in one for pair in zip(one[name], other[name])]
    if not all(a.shape == b.shape and 2 * len(a) == len(rows) for a, b in pairs):
        return False  # not a row for each image
    return all(torch.equal(both, both[first]) for both in map(torch.cat, pairs))
