"""Finds missing annotation files and image folders before anything is trained."""

from __future__ import annotations

from pathlib import Path

from mmengine.registry import DATASETS

from mmgslora.errors import ForgettingError


def check_files(dataset: dict) -> None:
    """Check that the files a data set's config names exist.

    Wrapped data sets (``dataset=dict(...)``) are followed; remote paths are left to MMEngine.

    Args:
        dataset: Config of a COCO-format data set, or of a wrapper around one.

    Raises:
        ForgettingError: The annotation file or the image folder is missing.
    """
    if 'dataset' in dataset:
        return check_files(dataset['dataset'])
    if getattr(DATASETS.get(dataset['type']), 'makes_its_files', False):
        return None
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
    return None
