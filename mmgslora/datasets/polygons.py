"""Filled polygons on a pixel grid, in integers: the same pixels on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUBPIXEL = 16  # corners lie on a grid of 1/16 pixel


def fill_polygon(loops: Sequence[Sequence[tuple[int, int]]], size: int) -> np.ndarray:
    """Pixels whose centre lies inside, (size, size) bool.

    Args:
        loops: Closed loops of corners (x, y) in 1/16 pixel; a loop inside another is a hole
            (even-odd rule). They may reach beyond the image.
        size: Side of the image in pixels.
    """
    edges = [
        (*a, *b) if a[1] < b[1] else (*b, *a)
        for loop in loops
        for a, b in zip(loop, [*loop[1:], loop[0]])
        if a[1] != b[1]
    ]
    x1, y1, x2, y2 = np.array(edges, dtype=np.int64).reshape(-1, 4, 1).transpose(1, 0, 2)
    y = np.arange(size) * SUBPIXEL + SUBPIXEL // 2
    # Every edge toggles the pixels on its left: those with column < end, in the rows it spans.
    over = (y1 <= y) & (y < y2)
    height = y2 - y1
    end = -(-((x2 - x1) * (y - y1) + (x1 - SUBPIXEL // 2) * height) // (SUBPIXEL * height))
    ends = np.zeros((size, size + 1), dtype=np.int64)
    edge, row = np.nonzero(over)
    np.add.at(ends, (row, end[edge, row].clip(0, size)), 1)
    return ends[:, :0:-1].cumsum(1)[:, ::-1] % 2 == 1
