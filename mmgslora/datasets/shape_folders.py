"""Generated images of one shape each, in class folders: the embedded data of classification."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS

from mmgslora.datasets.folder import FolderDataset
from mmgslora.datasets.generated import write_class_folders
from mmgslora.datasets.shapes import SHAPES, check_shapes, fill_shape, texture

SHAPE_CLASSES = tuple(sorted(SHAPES))


def draw_shape(
    rng: np.random.Generator, label: int, size: int = 32, shapes: Sequence[str] = SHAPE_CLASSES
) -> np.ndarray:
    """Draw one light shape on a dark textured background.

    Its centre lies within a tenth of the side of the middle, its radius is 0.28 to 0.42 of the
    side, and it is turned by up to 20 degrees; all that and the colours are random.

    Args:
        rng: Source of every choice.
        label: Position in ``shapes``.
        size: Side of the image in pixels. Defaults to 32.
        shapes: Names of shapes. Defaults to ``SHAPE_CLASSES``.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    image = texture(rng, size) * 9 // 20
    radius = int(rng.integers(size * 28 // 100, size * 42 // 100 + 1))
    away = size // 10
    x, y = (size // 2 + int(v) for v in rng.integers(-away, away + 1, 2))
    mask = fill_shape(shapes[label], (x, y), radius, int(rng.integers(-20, 21)), size)
    image[mask] = rng.integers(110, 256, 3) + rng.integers(-10, 11, (int(mask.sum()), 3))
    return image.clip(0, 255).astype(np.uint8)


def write_shape_folders(
    root: str | Path,
    train: int = 600,
    val: int = 50,
    test: int = 50,
    size: int = 32,
    seed: int = 0,
    shapes: Sequence[str] = SHAPES,
) -> None:
    """Write shape classes as class folders; the same numbers give the same images.

    See :func:`mmgslora.datasets.generated.write_class_folders`.

    Args:
        root: Folder to make.
        train, val, test: Images per class of each split. Defaults to 600, 50, 50.
        size: Side of the images in pixels. Defaults to 32.
        seed: Seed of all choices. Defaults to 0.
        shapes: The classes, of those that can be drawn. Defaults to ``SHAPES``.

    Raises:
        ForgettingError: The folder exists and is not this data set, or a shape is unknown.
    """
    check_shapes(shapes)
    classes = tuple(sorted(shapes))
    recipe = dict(train=train, val=val, test=test, size=size, seed=seed)
    if classes != SHAPE_CLASSES:
        recipe['shapes'] = list(classes)
    draw = partial(draw_shape, size=size, shapes=classes)
    write_class_folders(root, 'shape_folders', recipe, classes, draw)


@DATASETS.register_module()
class ShapeFolderDataset(FolderDataset):
    """The generated shapes as a :class:`FolderDataset`; its folder is made when it is missing.

    Args:
        data_root: Folder of the data set.
        generate: Arguments of :func:`write_shape_folders`. Defaults to its defaults.
        **kwargs: As :class:`FolderDataset`.
    """

    makes_its_files = True

    def __init__(self, data_root: str, generate: dict | None = None, **kwargs) -> None:
        write_shape_folders(data_root, **(generate or {}))
        super().__init__(data_root=data_root, **kwargs)
