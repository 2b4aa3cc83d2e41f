"""Finds data files that are missing, or do not fit the config, before anything is trained."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from mmgslora.errors import ForgettingError


def check_files(dataset: Mapping[str, Any]) -> None:
    """Check that the files a data set's config names exist and have its classes.

    Wrapped data sets (``dataset=dict(...)``) are followed; remote paths are left to MMEngine.

    A COCO-format file must have the category of every class, once, and in the order of the
    classes: MMDetection numbers its labels in the order of the *file* and leaves out what it does
    not find, so that label k would go by the name of another class.

    Args:
        dataset: Config of a COCO-format data set, or of a wrapper around one.

    Raises:
        ForgettingError: The annotation file or the image folder is missing, the annotation file
            cannot be read, or its categories are not the classes.
    """
    if 'dataset' in dataset:
        return check_files(dataset['dataset'])
    kind = _kind(dataset)
    if not getattr(kind, 'makes_its_files', False):
        _check_there(dataset)
    file = annotation_file(dataset)
    # Other data sets in COCO's format, such as LVIS, number their labels in their own way.
    labels_as_coco = getattr(kind, 'load_data_list', None) is CocoDataset.load_data_list
    if labels_as_coco and file is not None and file.is_file():
        classes = kind._load_metainfo(dataset.get('metainfo')).get('classes')
        _check_categories(file, tuple(classes or ()))
    return None


def check_evaluator(
    evaluator: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    dataset: Mapping[str, Any],
    split: str,
) -> None:
    """Check that an evaluator reads the annotation file of its data loader.

    Args:
        evaluator: Config of one metric, or of several.
        dataset: Config of the loader's data set.
        split: 'val' or 'test', for the message.

    Raises:
        ForgettingError: It reads another file.
    """
    loaded = annotation_file(dataset)
    for metric in [evaluator] if isinstance(evaluator, Mapping) else evaluator or ():
        read = metric.get('ann_file')
        if not read or '://' in read or loaded is None or Path(read).resolve() == loaded.resolve():
            continue
        raise ForgettingError(
            f'{split}_evaluator.ann_file is {read!r}, but {split}_dataloader loads '
            f'{str(loaded)!r}; both must be the same file.'
        )


def annotation_file(dataset: Mapping[str, Any]) -> Path | None:
    """The local annotation file that a data set's config names, or None."""
    if 'dataset' in dataset:
        return annotation_file(dataset['dataset'])
    root, name = dataset.get('data_root') or '', dataset.get('ann_file')
    return Path(root, name) if name and '://' not in f'{root}{name}' else None


def _kind(dataset: Mapping[str, Any]) -> type | None:
    if not isinstance(dataset['type'], str):
        return dataset['type']
    # Unlike build(), get() of the root registry does not look into the default scope.
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(dataset['type'])


def _check_there(dataset: Mapping[str, Any]) -> None:
    root = dataset.get('data_root') or ''
    folders = dataset.get('data_prefix', {}).values()
    wanted = [('Annotation file', dataset.get('ann_file'))] + [('Image folder', f) for f in folders]
    for what, name in wanted:
        if not name or '://' in f'{root}{name}':
            continue
        path = Path(root, name)
        if not path.exists():
            raise ForgettingError(
                f'{what} {str(path)!r} does not exist; put the data there, or set data_root, '
                'ann_file and data_prefix in the config.'
            )


def _check_categories(file: Path, classes: tuple[str, ...]) -> None:
    names = _category_names(file, file.stat().st_mtime_ns)
    where = f'Annotation file {str(file)!r}'
    for name in classes:
        if classes.count(name) > 1:
            raise ForgettingError(
                f'metainfo.classes has {name!r} {classes.count(name)} times; every class needs a '
                'name of its own.'
            )
        if name not in names:
            near = difflib.get_close_matches(name, set(names) - set(classes), n=1)
            guess = f' Is {near[0]!r} meant?' if near else ''
            raise ForgettingError(
                f'{where} has no category {name!r}, which metainfo.classes has; it has '
                f'{", ".join(names) or "none"}.{guess}'
            )
        if names.count(name) > 1:
            raise ForgettingError(
                f'{where} has {names.count(name)} categories of the name {name!r}; every class '
                'needs a category of its own.'
            )
    for label, (wanted, found) in enumerate(zip(classes, filter(set(classes).__contains__, names))):
        if wanted != found:
            raise ForgettingError(
                f'{where} has the category {found!r} where metainfo.classes has {wanted!r} (class '
                f'{label}); MMDetection numbers labels in the order of the file, so write '
                'metainfo.classes, or the categories of the file, in the order of the other.'
            )


@lru_cache(maxsize=16)
def _category_names(file: Path, changed: int) -> tuple[str, ...]:
    """Names in the file's order. Kept until the file has ``changed``: large ones take seconds."""
    try:
        content = json.loads(file.read_bytes())
        return tuple(category['name'] for category in content['categories'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForgettingError(
            f'Annotation file {str(file)!r} cannot be read as COCO JSON, an object with images, '
            f'annotations and categories with a name each ({type(error).__name__}: {error}).'
        ) from error
