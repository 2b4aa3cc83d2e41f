"""A generated detection data set: ten shape classes on textured backgrounds, in COCO format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from mmgslora.datasets.generated import write_coco_folder
from mmgslora.errors import ForgettingError

SHAPES = (
    'circle',
    'square',
    'triangle',
    'hexagon',
    'star',
    'cross',
    'ring',
    'crescent',
    'arrow',
    'heart',
)
UNSEEN_SHAPES = ('pentagon', 'kite', 'semicircle', 'frame', 'tee', 'bolt')
"""Shapes that can be drawn and are in no data set by default: classes that no model has seen."""
# Corners lie on a grid of 1/16 pixel: from there on all arithmetic is on integers, which is what
# makes the images the same on every machine.
_SUBPIXEL = 16

Loop = list[tuple[float, float]]


def _regular(corners: int, radius: float = 1.0, inner: float | None = None) -> Loop:
    """A regular polygon, or a star when every second corner lies on the ``inner`` radius."""
    return [
        (
            r * math.sin(2 * math.pi * i / corners),
            -r * math.cos(2 * math.pi * i / corners),
        )
        for i in range(corners)
        for r in [inner if inner is not None and i % 2 else radius]
    ]


def _crescent() -> Loop:
    outer = [math.radians(a) for a in range(50, 311, 10)]
    inner = [math.radians(a) for a in range(295, 64, -10)]
    return [(math.cos(a), math.sin(a)) for a in outer] + [
        (0.36 + 0.8 * math.cos(a), 0.8 * math.sin(a)) for a in inner
    ]


def _heart() -> Loop:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 17,
        )
        for a in angles
    ]


# Outlines inside the unit circle, y down; two loops make a hole (even-odd rule).
_OUTLINES: dict[str, list[Loop]] = {
    'circle': [_regular(40, 0.95)],
    'square': [[(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)]],
    'triangle': [_regular(3)],
    'hexagon': [_regular(6, 0.95)],
    'star': [_regular(10, 1.0, 0.42)],
    'cross': [
        [(-0.27, -0.95), (0.27, -0.95), (0.27, -0.27), (0.95, -0.27)]
        + [(0.95, 0.27), (0.27, 0.27), (0.27, 0.95), (-0.27, 0.95)]
        + [(-0.27, 0.27), (-0.95, 0.27), (-0.95, -0.27), (-0.27, -0.27)]
    ],
    'ring': [_regular(40, 0.95), _regular(40, 0.5)],
    'crescent': [_crescent()],
    'arrow': [
        [(0, -1), (0.75, -0.15), (0.28, -0.15), (0.28, 0.9)]
        + [(-0.28, 0.9), (-0.28, -0.15), (-0.75, -0.15)]
    ],
    'heart': [_heart()],
    'pentagon': [_regular(5)],
    'kite': [[(0, -1), (0.62, -0.25), (0, 1), (-0.62, -0.25)]],
    'semicircle': [
        [(math.cos(math.pi * i / 20), 0.5 - math.sin(math.pi * i / 20)) for i in range(21)]
    ],
    'frame': [
        [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)],
        [(-0.4, -0.4), (0.4, -0.4), (0.4, 0.4), (-0.4, 0.4)],
    ],
    'tee': [
        [(-0.8, -0.8), (0.8, -0.8), (0.8, -0.3), (0.25, -0.3)]
        + [(0.25, 0.95), (-0.25, 0.95), (-0.25, -0.3), (-0.8, -0.3)]
    ],
    'bolt': [[(0.3, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.2), (0.05, -0.2)]],
}


def fill_shape(
    shape: str, centre: tuple[int, int], radius: int, degrees: int, size: int
) -> np.ndarray:
    """Pixels covered by a shape, (size, size) bool: even-odd test at every pixel centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    low = [max(0, c - radius - 1) for c in centre]
    high = [min(size, c + radius + 2) for c in centre]
    px = np.arange(low[0], high[0]) * _SUBPIXEL + _SUBPIXEL // 2
    py = (np.arange(low[1], high[1]) * _SUBPIXEL + _SUBPIXEL // 2)[:, None]
    inside = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=bool)
    for loop in _OUTLINES[shape]:
        corners = [
            (
                round((centre[0] + radius * (x * cos - y * sin)) * _SUBPIXEL),
                round((centre[1] + radius * (x * sin + y * cos)) * _SUBPIXEL),
            )
            for x, y in loop
        ]
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1]):
            if y1 == y2:
                continue
            spans = (y1 > py) != (y2 > py)
            left = (px - x1) * (y2 - y1) - (x2 - x1) * (py - y1)
            inside ^= spans & ((left < 0) if y2 > y1 else (left > 0))
    mask = np.zeros((size, size), dtype=bool)
    mask[low[1] : high[1], low[0] : high[0]] = inside
    return mask


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth random background with fine noise, (size, size, 3) int64, about 0 to 255."""
    cells = 4
    coarse = rng.integers(-28, 29, (cells + 1, cells + 1, 3)) + rng.integers(40, 216, 3)
    at = np.arange(size) * cells
    cell, part = at // size, (at % size)[:, None]
    rows = coarse[cell] * (size - part[..., None]) + coarse[cell + 1] * part[..., None]
    both = rows[:, cell] * (size - part) + rows[:, cell + 1] * part
    return both // (size * size) + rng.integers(-10, 11, (size, size, 3))


def draw_image(
    rng: np.random.Generator, size: int, shapes: Sequence[str] = SHAPES
) -> tuple[np.ndarray, list[dict]]:
    """Draw one image with 1 to 4 shapes that hardly overlap.

    Args:
        rng: Source of every choice.
        size: Side of the image in pixels.
        shapes: Their names, each drawn as often as any other. Defaults to :data:`SHAPES`.

    Returns:
        The image, (size, size, 3) uint8 in BGR order, and one dict per object with
        ``category_id`` (1 to the number of shapes), ``bbox`` ([x, y, w, h] in pixels, tight around
        the visible pixels) and ``area`` (visible pixels).
    """
    image = texture(rng, size)
    placed: list[tuple[int, int, int]] = []
    masks: list[tuple[int, np.ndarray]] = []
    for _ in range(int(rng.integers(1, 5))):
        radius = int(rng.integers(size // 10, size * 2 // 9))
        for _ in range(20):
            x, y = (int(v) for v in rng.integers(radius, size - radius, 2))
            if all((x - u) ** 2 + (y - v) ** 2 > (radius + r) ** 2 for u, v, r in placed):
                break
        else:
            continue
        placed.append((x, y, radius))
        label = int(rng.integers(len(shapes)))
        mask = fill_shape(shapes[label], (x, y), radius, int(rng.integers(360)), size)
        under = image[mask].sum(0) // mask.sum()
        colour = rng.integers(0, 256, 3)
        while np.abs(colour - under).sum() < 150:
            colour = rng.integers(0, 256, 3)
        image[mask] = colour + rng.integers(-10, 11, (int(mask.sum()), 3))
        masks.append((label, mask))
    objects = [dict(category_id=label + 1, **visible_box(mask)) for label, mask in masks]
    return image.clip(0, 255).astype(np.uint8), objects


def visible_box(mask: np.ndarray) -> dict:
    """``bbox`` ([x, y, w, h] in pixels, tight) and ``area`` of the pixels set, (H, W) bool."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1]
    return dict(bbox=[int(v) for v in box], area=int(mask.sum()))


def check_shapes(names: Sequence[str]) -> None:
    """See that all of these can be drawn.

    Raises:
        ForgettingError: One cannot.
    """
    for name in names:
        if name not in _OUTLINES:
            raise ForgettingError(
                f'The shape {name!r} cannot be drawn; those that can are {", ".join(_OUTLINES)}.'
            )


def write_shapes(
    root: str | Path,
    train: int = 2000,
    val: int = 300,
    test: int = 300,
    size: int = 128,
    seed: int = 0,
    shapes: Sequence[str] = SHAPES,
) -> None:
    """Write the data set as a COCO-format folder; the same numbers give the same images.

    The folder holds ``train/``, ``val/``, ``test/`` with PNG files, ``annotations/{split}.json``
    and ``shapes.json`` with the arguments. It appears whole or not at all. A folder that is
    there already is left as it is.

    Args:
        root: Folder to make.
        train, val, test: Number of images per split. Defaults to 2000, 300, 300.
        size: Side of the images in pixels. Defaults to 128.
        seed: Seed of all choices. Defaults to 0.
        shapes: The classes in the order of their ids, of :data:`SHAPES` and
            :data:`UNSEEN_SHAPES`. Defaults to the former.

    Raises:
        ForgettingError: The folder exists and is not this data set, or a shape cannot be drawn.
    """
    check_shapes(shapes)
    recipe = dict(train=train, val=val, test=test, size=size, seed=seed)
    if tuple(shapes) != SHAPES:
        recipe['shapes'] = list(shapes)

    write_coco_folder(root, 'shapes', recipe, shapes, partial(draw_image, shapes=shapes))


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The generated shapes as an MMDetection data set; its folder is made when it is missing.

    Args:
        data_root: Folder of the data set.
        generate: Arguments of :func:`write_shapes`, whose ``shapes`` are the classes. Defaults to
            its defaults.
        **kwargs: As :class:`mmdet.datasets.CocoDataset`.
    """

    METAINFO = dict(classes=SHAPES)
    makes_its_files = True

    def __init__(self, *args, data_root: str, generate: dict | None = None, **kwargs) -> None:
        generate = generate or {}
        write_shapes(data_root, **generate)
        if 'shapes' in generate:
            kwargs.setdefault('metainfo', dict(classes=tuple(generate['shapes'])))
        super().__init__(*args, data_root=data_root, **kwargs)
