"""Writes generated images into class folders, or beside COCO annotations, once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mmgslora.errors import ForgettingError

SPLITS = ('train', 'val', 'test')


def write_class_folders(
    root: str | Path,
    name: str,
    recipe: dict,
    classes: Sequence[str],
    draw: Callable[[np.random.Generator, int], np.ndarray],
) -> None:
    """Write ``train/``, ``val/`` and ``test/``, each with one folder of PNG files per class.

    Every image has a random generator of its own, made from ``recipe['seed']``, the split, the
    class and its number. The folder appears whole or not at all, with the recipe in
    ``{name}.json``. A folder that is there already is left as it is.

    Args:
        root: Folder to make.
        name: What the data set is called.
        recipe: ``seed``, the images per class of each split, and all else that tells one such
            data set from another.
        classes: Names of the class folders, sorted.
        draw: Gives an image, (H, W, 3) uint8 RGB, for a generator and a label.

    Raises:
        ForgettingError: The folder exists and is not this data set.
    """

    def write(draft: Path) -> None:
        for number, split in enumerate(SPLITS):
            for label, folder in enumerate(classes):
                (draft / split / folder).mkdir(parents=True)
                for index in range(recipe[split]):
                    rng = np.random.default_rng([recipe['seed'], number, label, index])
                    image = Image.fromarray(draw(rng, label))
                    image.save(draft / split / folder / f'{index + 1:04d}.png')

    write_once(root, name, recipe, write)


def write_coco_folder(
    root: str | Path,
    name: str,
    recipe: dict,
    classes: Sequence[str],
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, list[dict]]],
) -> None:
    """Write ``train/``, ``val/`` and ``test/`` with PNG files, and ``annotations/{split}.json``.

    The images of a split share one random generator, made from ``recipe['seed']`` and the split.
    The folder appears whole or not at all, with the recipe in ``{name}.json``. A folder that is
    there already is left as it is.

    Args:
        root: Folder to make.
        name: What the data set is called.
        recipe: ``seed``, ``size`` (side of the images in pixels), the images of each split, and
            all else that tells one such data set from another.
        classes: In the order of their category ids, from 1.
        draw: Gives an image, (size, size, 3) uint8 BGR, and its objects in COCO's keys, for a
            generator and a size.

    Raises:
        ForgettingError: The folder exists and is not this data set.
    """

    def write(draft: Path) -> None:
        (draft / 'annotations').mkdir()
        size = recipe['size']
        categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        for number, split in enumerate(SPLITS):
            rng = np.random.default_rng([recipe['seed'], number])
            images, annotations = [], []
            (draft / split).mkdir()
            for image_id in range(1, recipe[split] + 1):
                image, objects = draw(rng, size)
                file_name = f'{image_id:06d}.png'
                cv2.imwrite(str(draft / split / file_name), image)
                images.append(dict(id=image_id, file_name=file_name, width=size, height=size))
                for item in objects:
                    ids = dict(id=len(annotations) + 1, image_id=image_id)
                    annotations.append(dict(iscrowd=0) | item | ids)
            content = dict(images=images, annotations=annotations, categories=categories)
            (draft / 'annotations' / f'{split}.json').write_text(json.dumps(content))

    write_once(root, name, recipe, write)


def write_once(
    root: str | Path, name: str, recipe: dict[str, Any], write: Callable[[Path], None]
) -> None:
    """Make the folder of a generated data set, whole or not at all, if it is not there yet.

    Args:
        root: Folder to make.
        name: What the data set is called; the recipe goes into ``{name}.json``.
        recipe: All that tells one such data set from another.
        write: Fills the folder it is given.

    Raises:
        ForgettingError: The folder exists and is not this data set.
    """
    root = Path(root)
    if root.exists():
        note = root / f'{name}.json'
        found = json.loads(note.read_text()) if note.is_file() else f'no {name} data set'
        if found != recipe:
            raise ForgettingError(
                f'{root} holds {found} but {recipe} is asked for; '
                'remove the folder or set another data_root.'
            )
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{root.name}_', dir=root.parent))
    write(draft)
    (draft / f'{name}.json').write_text(json.dumps(recipe))
    try:
        draft.chmod(0o755)
        draft.rename(root)
    except OSError:
        # Another process was faster; its folder must be the same data set.
        shutil.rmtree(draft)
        write_once(root, name, recipe, write)
