"""A validation split of a COCO-format data set that has none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgslora.errors import ForgettingError

_KEYS = dict(images=('id',), annotations=('image_id', 'category_id'), categories=('id', 'name'))


def split_coco(path: str | Path, val: float = 0.15, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Share the images of a COCO-format file out to training and validation (ours).

    The rarest class goes first: as long as validation has fewer than its share of the class's
    images (at least one), it gets another one at random, unless that would take the last image of
    some class from training. So every class with two images or more is in both parts, unless
    all its images are the only ones of other classes. Images without boxes are drawn last, until
    validation has its share of all images.

    Args:
        path: JSON with ``images``, ``annotations`` and ``categories``.
        val: Share of the images for validation, (0, 1). Defaults to 0.15.
        seed: Seed of the draw. Defaults to 0.

    Returns:
        The content of 'train' and of 'val': their images and annotations in the file's order, and
        everything else that the file has.

    Raises:
        ForgettingError: The file cannot be read or is not in COCO format, an image is there twice,
            a part has no image, or ``val`` or ``seed`` is out of range.
    """
    if not 0 < val < 1:
        raise ForgettingError(f'The share for validation is {val}; it must be between 0 and 1.')
    if seed < 0:
        raise ForgettingError(f'The seed is {seed}; it can be a whole number from 0 up.')
    content = _read(Path(path))
    images = [image['id'] for image in content['images']]
    for image, count in Counter(images).most_common(1):
        if count > 1:
            raise ForgettingError(f'{str(path)!r} has the image id {image!r} {count} times.')
    classes_of: dict[int, set[int]] = {image: set() for image in images}
    for item in content['annotations']:
        if item['image_id'] in classes_of:
            classes_of[item['image_id']].add(item['category_id'])
    chosen = _held_out(classes_of, val, seed)
    if not chosen or len(chosen) == len(images):
        raise ForgettingError(
            f'{str(path)!r} has {len(images)} images, which leave none for one of the parts with '
            f'a share of {val} for validation; give more images or another share.'
        )
    return {
        name: {
            **content,
            'images': [x for x in content['images'] if (x['id'] in chosen) == held_out],
            'annotations': [
                x for x in content['annotations'] if (x['image_id'] in chosen) == held_out
            ],
        }
        for name, held_out in (('train', False), ('val', True))
    }


def _held_out(classes_of: Mapping[int, set[int]], val: float, seed: int) -> set[int]:
    """The images for validation, given the classes that each image shows."""
    images = list(classes_of)
    order = [images[i] for i in np.random.default_rng(seed).permutation(len(images))]
    total = Counter(label for found in classes_of.values() for label in found)
    chosen: set[int] = set()
    taken: Counter = Counter()

    def take(image: int) -> None:
        if all(total[label] - taken[label] > 1 for label in classes_of[image]):
            chosen.add(image)
            taken.update(classes_of[image])

    for label, count in sorted(total.items(), key=lambda item: (item[1], item[0])):
        for image in order:
            if taken[label] >= max(1, round(val * count)):
                break
            if label in classes_of[image] and image not in chosen:
                take(image)
    for image in order:
        if len(chosen) >= round(val * len(images)):
            break
        if not classes_of[image]:
            take(image)
    return chosen


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        for part, keys in _KEYS.items():
            if not isinstance(content[part], list):
                raise TypeError(f'{part} is no list')
            for number, entry in enumerate(content[part]):
                lacking = [key for key in keys if key not in entry]
                if lacking:
                    raise ValueError(f'entry {number} of {part} lacks {", ".join(lacking)}')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForgettingError(
            f'{str(path)!r} cannot be read as COCO JSON, an object with the lists images, '
            f'annotations and categories ({type(error).__name__}: {error}).'
        ) from error
    return content
