"""Annotation files in COCO's format: read once, and looked through before MMDetection does."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO

from mmgslora.errors import ForgettingError

_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}
_MANY = 5  # absent categories from which on they are said together
_ID = (int, float, str), 'a number or text'
_KINDS = {
    'id': _ID,
    'image_id': _ID,
    'category_id': _ID,
    'file_name': (str, 'text'),
    'name': (str, 'text'),
    'width': ((int, float), 'a number'),
    'height': ((int, float), 'a number'),
}


def innermost(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the data set that wrappers (``dataset=dict(...)``) are around."""
    return innermost(dataset['dataset']) if 'dataset' in dataset else dataset


def annotation_file(dataset: Mapping[str, Any]) -> Path | None:
    """The local annotation file that a data set's config names, or None."""
    dataset = innermost(dataset)
    root, name = dataset.get('data_root') or '', dataset.get('ann_file')
    return Path(root, name) if name and '://' not in f'{root}{name}' else None


def read_annotations(file: Path) -> dict[str, Any]:
    """The content of a COCO annotation file.

    Raises:
        ForgettingError: It is not JSON, lacks one of its three lists or a key of their entries, an
            entry has a value of another kind, or two entries of a list have one id or ids of two
            kinds.
    """
    name = f'Annotation file {str(file)!r}'
    try:
        # Not of the bytes, whose encoding json would guess: pycocotools does not.
        content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ForgettingError(
            f'{name} cannot be read as COCO JSON ({type(error).__name__}: {error}).'
        ) from error
    if not isinstance(content, dict):
        raise ForgettingError(
            f'{name} cannot be read as COCO JSON: it holds a {type(content).__name__} and not an '
            f'object with {", ".join(_KEYS)}.'
        )
    for part, keys in _KEYS.items():
        entries = content.get(part)
        if not isinstance(entries, list):
            raise ForgettingError(f'{name} cannot be read as COCO JSON: it has no list {part!r}.')
        for number, entry in enumerate(entries):
            lacking = [k for k in keys if k not in entry] if isinstance(entry, dict) else keys
            if lacking:
                raise ForgettingError(
                    f'{name} cannot be read as COCO JSON: entry {number} of {part!r} lacks '
                    f'{", ".join(lacking)}.'
                )
            for key in keys:
                kinds, allowed = _KINDS.get(key, (object, ''))
                if not isinstance(entry[key], kinds):
                    raise ForgettingError(
                        f'{name}: entry {number} of {part!r} has the {key} {entry[key]!r}; it can '
                        f'be {allowed}.'
                    )
        if len({entry['id'] for entry in entries}) < len(entries):
            (twice, _), *_ = Counter(entry['id'] for entry in entries).most_common(1)
            raise ForgettingError(f'{name} has the id {twice!r} more than once in {part!r}.')
        if len({isinstance(entry['id'], str) for entry in entries}) > 1:
            raise ForgettingError(
                f'{name} has numbers and text as ids in {part!r}; they can be of one kind only, '
                'for the evaluator sorts them.'
            )
    if not content['images']:
        raise ForgettingError(f'{name} has no images.')
    return content


@contextmanager
def parsed(contents: Mapping[Path, dict]) -> Iterator[None]:
    """Within, data sets of MMDetection take these files as read: large ones take seconds."""

    class Parsed(COCO):
        def __init__(self, annotation_file: str) -> None:
            content = contents.get(Path(annotation_file).resolve())
            super().__init__(annotation_file if content is None else None)
            if content is not None:
                self.dataset = content
                self.createIndex()
                self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    before, CocoDataset.COCOAPI = CocoDataset.COCOAPI, Parsed
    try:
        yield
    finally:
        CocoDataset.COCOAPI = before


def category_problems(file: Path, names: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    """What keeps the categories of a file from being the classes of a data set.

    MMDetection numbers its labels in the order of the *file* and leaves out what it does not find,
    so that label k would go by the name of another class.
    """
    where = f'Annotation file {str(file)!r}'
    absent = [name for name in dict.fromkeys(classes) if name not in names]
    if len(absent) > _MANY:
        yield (
            f'{where} has no category for {len(absent)} of the {len(classes)} classes of '
            f'metainfo.classes, the first is {absent[0]!r}; it has {", ".join(names) or "none"}. '
            "Without metainfo=dict(classes=...) the classes are the data set's own, such as COCO's."
        )
        return
    found = False
    for name in dict.fromkeys(classes):
        if classes.count(name) > 1:
            found = True
            yield (
                f'metainfo.classes has {name!r} {classes.count(name)} times; every class needs a '
                'name of its own.'
            )
        if name not in names:
            found = True
            near = difflib.get_close_matches(name, set(names) - set(classes), n=1)
            guess = f' Is {near[0]!r} meant?' if near else ''
            yield (
                f'{where} has no category {name!r}, which metainfo.classes has; it has '
                f'{", ".join(names) or "none"}.{guess}'
            )
        if names.count(name) > 1:
            found = True
            yield (
                f'{where} has {names.count(name)} categories of the name {name!r}; every class '
                'needs a category of its own.'
            )
    in_file = [name for name in names if name in classes]
    for label, (wanted, there) in enumerate(zip(classes, in_file)):
        if wanted != there and not found:
            yield (
                f'{where} has the category {there!r} where metainfo.classes has {wanted!r} (class '
                f'{label}); MMDetection numbers labels in the order of the file, so write '
                'metainfo.classes, or the categories of the file, in the order of the other.'
            )
            return


def dropped_boxes(content: Mapping[str, Any], classes: Sequence[str]) -> Counter[str]:
    """How many boxes MMDetection leaves out, by the reason."""
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    wanted, known = set(), set()
    for category in content['categories']:
        known.add(category['id'])
        if category['name'] in classes:
            wanted.add(category['id'])
    dropped: Counter[str] = Counter()
    for item in content['annotations']:
        size = sizes.get(item['image_id'])
        if size is None:
            dropped['of an image that is not listed'] += 1
            continue
        if item.get('ignore'):
            dropped['marked with ignore'] += 1
            continue
        try:  # MMDetection reads the boxes of classes that it leaves out, too
            x, y, width, height = item['bbox']
            area = item['area']
            numbers = math.isfinite(x + y + width + height + area)
        except (TypeError, ValueError):
            numbers = False
        if not numbers:
            raise ForgettingError(
                f'Annotation {item["id"]!r} has the bbox {item["bbox"]!r} and the area '
                f'{item["area"]!r}; a bbox is [x, y, width, height], an area a number.'
            )
        if item['category_id'] not in wanted:
            kind = 'a class that is not used' if item['category_id'] in known else 'no category'
            dropped[f'of {kind}'] += 1
            continue
        if width < 1 or height < 1 or area <= 0:
            dropped['thinner than a pixel'] += 1
        elif x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
            dropped['outside the image'] += 1
    return dropped


def image_problems(images: Sequence[Mapping[str, Any]], folder: Path, file: Path) -> Iterator[str]:
    """Images of a file that are missing or empty, found by listing their folders."""
    there: dict[tuple[str, str], int] = {}
    for inner in {os.path.dirname(image['file_name']) for image in images}:  # noqa: PTH120
        if (folder / inner).is_dir():
            with os.scandir(folder / inner) as entries:
                there.update(
                    ((inner, x.name), x.stat().st_size)
                    for x in entries
                    if x.is_file()  # and no link to what is gone
                )
    names = [image['file_name'] for image in images]
    sizes = {name: there.get(os.path.split(name)) for name in names}
    for what, names in (
        ('missing', [name for name, size in sizes.items() if size is None]),
        ('empty', [name for name, size in sizes.items() if size == 0]),
    ):
        if names:
            yield (
                f'{len(names)} of the {len(sizes)} images of {str(file)!r} are {what} in '
                f'{str(folder)!r}, the first is {names[0]!r}; put them there, or take them out of '
                'the file.'
            )
