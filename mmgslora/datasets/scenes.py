"""A generated detection data set of eighty classes, made like COCO where forgetting feels it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from mmgslora.datasets.generated import write_coco_folder
from mmgslora.datasets.shapes import SHAPES, fill_shape, texture, visible_box

COLOURS = {
    'red': (215, 35, 40),
    'orange': (240, 140, 20),
    'yellow': (240, 225, 40),
    'green': (40, 170, 60),
    'cyan': (50, 210, 215),
    'blue': (40, 70, 215),
    'purple': (140, 40, 190),
    'pink': (245, 130, 190),
}
"""RGB of each colour, before every object varies it."""
SCENE_CLASSES = tuple(f'{colour} {shape}' for colour in COLOURS for shape in SHAPES)
_KINDS = 8  # kinds of scene, each with ten classes at home in it
_RANK = np.random.default_rng(80).permutation(len(SCENE_CLASSES))
_SHARE = 1.0 / (_RANK + 2)  # the most frequent class about 40 times as often as the rarest


def neighbours(name: str) -> tuple[str, ...]:
    """The classes that share a part, colour or shape, with one of :data:`SCENE_CLASSES`."""
    parts = set(name.split())
    return tuple(c for c in SCENE_CLASSES if c != name and parts & set(c.split()))


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[dict]]:
    """Draw one image.

    One in fifty shows nothing; the others up to eight objects of a radius from 1/18 to 2/9 of the
    image, in which classes of one kind of scene stand together. One in twenty has a crowd besides:
    seven small objects of one class under one box with ``iscrowd``.

    Args:
        rng: Source of every choice.
        size: Side of the image in pixels.

    Returns:
        The image, (size, size, 3) uint8 in BGR order, and one dict per object with
        ``category_id`` (from 1), ``bbox`` ([x, y, w, h] in pixels, tight around the visible
        pixels), ``area`` (visible pixels) and ``iscrowd``.
    """
    image = texture(rng, size)
    image = (image + 2 * image.mean(-1, keepdims=True).astype(np.int64)) // 3  # muted
    share = _SHARE * np.where(rng.integers(_KINDS) == _RANK % _KINDS, 8, 1)
    share = share / share.sum()
    placed: list[tuple[int, int, int]] = []
    masks: list[tuple[int, bool, np.ndarray]] = []

    def place(radius: int) -> tuple[int, int] | None:
        for _ in range(20):
            x, y = (int(v) for v in rng.integers(radius, size - radius, 2))
            if all((x - u) ** 2 + (y - v) ** 2 > 0.8 * (radius + r) ** 2 for u, v, r in placed):
                placed.append((x, y, radius))
                return x, y
        return None

    def draw(label: int, centre: tuple[int, int], radius: int) -> np.ndarray:
        colour, shape = SCENE_CLASSES[label].split()
        mask = fill_shape(shape, centre, radius, int(rng.integers(360)), size)
        paint = np.array(COLOURS[colour][::-1]) + rng.integers(-20, 21, 3)
        image[mask] = paint + rng.integers(-10, 11, (int(mask.sum()), 3))
        for _, _, earlier in masks:
            earlier &= ~mask
        return mask

    empty = rng.integers(50) == 0
    if not empty and rng.integers(20) == 0:
        label, radius = int(rng.choice(len(share), p=share)), size // 5
        centre = np.array(place(radius))
        small, crowd = max(radius // 4, 3), np.zeros((size, size), dtype=bool)
        for offset in rng.integers(small - radius, radius - small + 1, (7, 2)):
            crowd |= draw(label, tuple(int(v) for v in centre + offset), small)
        masks.append((label, True, crowd))
    for _ in range(0 if empty else int(rng.integers(1, 9))):
        radius = int(size / 18 * 4 ** rng.random())
        centre = place(radius)
        if centre is not None:
            label = int(rng.choice(len(share), p=share))
            masks.append((label, False, draw(label, centre, radius)))
    objects = [
        dict(category_id=label + 1, **visible_box(mask), iscrowd=int(crowd))
        for label, crowd, mask in masks
        if mask.any()
    ]
    return image.clip(0, 255).astype(np.uint8), objects


def write_scenes(
    root: str | Path,
    train: int = 4000,
    val: int = 500,
    test: int = 1000,
    size: int = 128,
    seed: int = 0,
) -> None:
    """Write the data set as a COCO-format folder, as :func:`~mmgslora.datasets.write_shapes` does.

    Args:
        root: Folder to make. One that is there already is left as it is.
        train, val, test: Number of images per split. Defaults to 4000, 500, 1000.
        size: Side of the images in pixels. Defaults to 128.
        seed: Seed of all choices. Defaults to 0.

    Raises:
        ForgettingError: The folder exists and is not this data set.
    """
    recipe = dict(train=train, val=val, test=test, size=size, seed=seed)
    write_coco_folder(root, 'scenes', recipe, SCENE_CLASSES, draw_scene)


@DATASETS.register_module()
class ScenesDataset(CocoDataset):
    """The generated scenes as an MMDetection data set; its folder is made when it is missing.

    Args:
        data_root: Folder of the data set.
        generate: Arguments of :func:`write_scenes`. Defaults to its defaults.
        **kwargs: As :class:`mmdet.datasets.CocoDataset`.
    """

    METAINFO = dict(classes=SCENE_CLASSES)
    makes_its_files = True

    def __init__(self, *args, data_root: str, generate: dict | None = None, **kwargs) -> None:
        write_scenes(data_root, **(generate or {}))
        super().__init__(*args, data_root=data_root, **kwargs)
