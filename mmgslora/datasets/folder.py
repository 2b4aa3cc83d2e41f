"""Images sorted into one folder per class: the data of classifiers and face recognisers."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes
from torchvision.transforms import InterpolationMode, v2

from mmgslora.errors import ForgettingError

_MANY = 20_000  # images from which the check of all files is announced


@DATASETS.register_module()
class FolderDataset(BaseDataset):
    """One folder per class, as torchvision's ``ImageFolder`` lists it.

    The classes are the sorted names of the class folders, or ``classes`` of these; a class also has
    a number, its position among them from 0. Items are ``dict(inputs=..., data_samples=...)``: a
    (3, H, W) float32 image and a ``BaseDataElement`` with the metainfo ``img_id`` (position in the
    listing of the folder) and ``img_path`` and the field ``gt_label``, a scalar int64 tensor.

    Data without a test folder are split here: every class is shuffled with a seed and cut into
    ``split``'s shares, each of at least one image.

    Args:
        data_root: Folder of the data set.
        folder: Folder with the class folders, inside ``data_root``. Defaults to '', the
            ``data_root`` itself.
        transforms: Configs of torchvision's v2 transforms, see :func:`build_transforms`. They
            take an RGB image of PIL and must end in a (3, H, W) float32 tensor.
        split: Shares of the parts that every class is cut into, e.g. ``dict(train=7, val=3)``.
            Defaults to None: all images.
        part: The part of ``split`` that this data set is. Defaults to 'train'.
        seed: Seed of the split. Defaults to 0.
        classes: The class folders that count, in the order of their labels; images of others are
            left out. Defaults to None: ``classes`` of ``metainfo``, or all, sorted.
        classes_from: Another folder inside ``data_root`` that must have the same class folders;
            given for validation and test data. Defaults to None: not checked.
        verify: 'all' decodes every file once when the data set is built, JPEG files at an eighth
            of their size, in threads and shared among the processes of a distributed run; 'none'
            leaves it to the training to come across a broken file. Defaults to 'all'.
        **kwargs: As :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ForgettingError: The folder or its class folders are missing, a class folder has no
            image, an image cannot be decoded or is not of 8 bits, the class folders of
            ``classes_from`` differ, a class has fewer images than the split has parts, or a setting
            is unknown or not read.
    """

    def __init__(
        self,
        data_root: str,
        folder: str = '',
        transforms: Sequence[dict] = (),
        split: dict[str, float] | None = None,
        part: str = 'train',
        seed: int = 0,
        classes: Sequence[str] | None = None,
        classes_from: str | None = None,
        verify: str = 'all',
        **kwargs,
    ) -> None:
        for name in ('ann_file', 'data_prefix', 'pipeline', 'filter_cfg'):
            if kwargs.get(name):
                raise ForgettingError(
                    f'{name} is {kwargs[name]!r}, which is not read; the images of a '
                    f'{type(self).__name__} are those of data_root and folder, and their pipeline '
                    'is transforms.'
                )
        self.folder = Path(data_root, folder)
        found = class_folders(self.folder)
        metainfo = dict(kwargs.get('metainfo') or {})
        classes = tuple(classes or metainfo.get('classes') or ()) or None
        for name, count in Counter(classes or ()).items():
            if count > 1:
                raise ForgettingError(f'classes names {name!r} {count} times; once is enough.')
        if missing := [name for name in classes or () if name not in found]:
            raise ForgettingError(
                f'classes names {missing[0]!r}, which has no folder in {str(self.folder)!r}; there '
                f'are {", ".join(found)}.'
            )
        if classes_from is not None:
            other = Path(data_root, classes_from)
            check_same_classes(found, class_folders(other), str(self.folder), str(other))
        if verify not in ('all', 'none'):
            raise ForgettingError(f'verify is {verify!r}; it can be all or none.')
        if split is not None and (part not in split or min(split.values()) <= 0):
            raise ForgettingError(
                f'Part {part!r} of the split {dict(split)} cannot be had; part must be one of its '
                'keys, and every share above 0.'
            )
        self.split, self.part, self.seed, self.verify = split, part, seed, verify
        kwargs['metainfo'] = dict(metainfo, classes=classes or found)
        kwargs['pipeline'] = [ImagePipeline(transforms)]
        super().__init__(data_root=data_root, **kwargs)

    @property
    def cat_ids(self) -> list[int]:
        """The number of every class, by which a protocol may ask for it."""
        return list(range(len(self.metainfo['classes'])))

    def load_data_list(self) -> list[dict]:
        """List the images, check them, and keep those of this part."""
        label_of = {name: label for label, name in enumerate(self.metainfo['classes'])}
        images, number, empty, others = [], 0, [], Counter()
        for name in class_folders(self.folder):
            files = _files(self.folder / name)
            paths = [file for file in files if file.lower().endswith(IMG_EXTENSIONS)]
            if name in label_of:
                label = label_of[name]
                images += [
                    dict(img_path=path, img_id=img_id, gt_label=label)
                    for img_id, path in enumerate(paths, number)
                ]
                empty += [] if paths else [name]
                rest = (Path(file) for file in files if not file.lower().endswith(IMG_EXTENSIONS))
                others.update(x.suffix or 'none' for x in rest if x.name[0] != '.')
            number += len(paths)
        if empty:
            raise ForgettingError(
                f'Image folder {str(self.folder)!r}: Found no valid file for the classes '
                f'{", ".join(empty)}. Supported extensions are: {", ".join(IMG_EXTENSIONS)}.'
            )
        if others:
            kinds = ', '.join(f'{count} with {kind}' for kind, count in others.most_common(5))
            print_log(
                f'Left out of {str(self.folder)!r}: {others.total()} file(s) that are no images by '
                f'their extension: {kinds}.',
                logger='current',
            )
        if self.split is not None:
            images = self._part(images)
        if self.verify == 'all':
            _decode_all([image['img_path'] for image in images])
        return images

    def _part(self, images: list[dict]) -> list[dict]:
        parts = list(self.split)
        shares = np.cumsum([self.split[part] for part in parts])
        chosen = []
        for label, name in enumerate(self.metainfo['classes']):
            members = [image for image in images if image['gt_label'] == label]
            if len(members) < len(parts):
                raise ForgettingError(
                    f'Class {name!r} in {str(self.folder)!r} has {len(members)} image(s), too few '
                    f'for the parts {", ".join(parts)}; each needs one.'
                )
            cuts = [0]
            for number, share in enumerate(shares, 1):
                # At least one image for this part, and one for each of those that follow.
                wanted = max(round(len(members) * share / shares[-1]), cuts[-1] + 1)
                cuts.append(min(wanted, len(members) - (len(parts) - number)))
            order = np.random.default_rng([self.seed, label]).permutation(len(members))
            at = parts.index(self.part)
            chosen += [members[i] for i in sorted(order[cuts[at] : cuts[at + 1]])]
        return chosen


class ImagePipeline:
    """The pipeline of a :class:`FolderDataset`: reads one image and transforms it.

    Args:
        transforms: See :func:`build_transforms`.

    Raises:
        ForgettingError: A transform is unknown or its arguments are; or, in use, the file cannot
            be decoded or the transforms do not end in a (3, H, W) float32 tensor.
    """

    def __init__(self, transforms: Sequence[dict]) -> None:
        self.transforms = build_transforms(transforms)

    def __call__(self, info: dict) -> dict:
        image = self.transforms(read_image(info['img_path']))
        if not (
            isinstance(image, Tensor)
            and image.dtype == torch.float32
            and image.ndim == 3
            and len(image) == 3
        ):
            found = (
                f'{image.dtype} {tuple(image.shape)}'
                if isinstance(image, Tensor)
                else type(image).__name__
            )
            raise ForgettingError(
                f'The transforms give {found} instead of a float32 tensor (3, H, W); let them '
                "have dict(type='ToImage') and dict(type='ToDtype', dtype='float32', scale=True)."
            )
        sample = BaseDataElement(
            metainfo=dict(img_id=info['img_id'], img_path=info['img_path']),
            gt_label=torch.tensor(info['gt_label']),
        )
        return dict(inputs=image.as_subclass(Tensor), data_samples=sample)


def build_transforms(transforms: Sequence[dict]) -> v2.Compose:
    """Build transforms of ``torchvision.transforms.v2`` from configs.

    ``type`` is a name of that module, all else its arguments. A ``dtype`` is named as in torch
    ('float32'), an ``interpolation`` as in torchvision ('bicubic'); ``transforms`` inside a
    transform (``RandomApply``, ``RandomChoice``) is again a list of configs.

    Raises:
        ForgettingError: A name or an argument is unknown.
    """
    return v2.Compose([_build(config) for config in transforms] or [v2.Identity()])


def _build(config: dict) -> v2.Transform:
    arguments = dict(config)
    name = arguments.pop('type', None)
    known = [n for n, v in vars(v2).items() if isinstance(v, type) and issubclass(v, v2.Transform)]
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0)[0]
        raise ForgettingError(
            f'{name!r} is no transform of torchvision.transforms.v2; did you mean {near!r}?'
        )
    try:
        if isinstance(arguments.get('dtype'), str):
            arguments['dtype'] = getattr(torch, arguments['dtype'])
        if isinstance(arguments.get('interpolation'), str):
            arguments['interpolation'] = InterpolationMode(arguments['interpolation'])
        if 'transforms' in arguments:
            arguments['transforms'] = [_build(inner) for inner in arguments['transforms']]
        return getattr(v2, name)(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ForgettingError(f'Transform {dict(config)} cannot be built: {error}.') from error


def _files(folder: Path) -> list[str]:
    """All files below a folder, in the order of torchvision's ``ImageFolder``."""
    below = sorted(os.walk(folder, followlinks=True))
    return [str(Path(at, file)) for at, _, files in below for file in sorted(files)]


def class_folders(folder: str | Path) -> tuple[str, ...]:
    """Names of the class folders, sorted.

    Raises:
        ForgettingError: The folder does not exist or has no folder inside.
    """
    if not Path(folder).is_dir():
        raise ForgettingError(
            f'Image folder {str(folder)!r} does not exist; put the data there, or set data_root '
            'and folder in the config.'
        )
    try:
        return tuple(find_classes(str(folder))[0])
    except FileNotFoundError as error:
        raise ForgettingError(
            f'Image folder {str(folder)!r} has no class folders; each class needs a folder of its '
            'own with its images.'
        ) from error


def check_same_classes(
    classes: Sequence[str], others: Sequence[str], where: str, there: str
) -> None:
    """Check that two data sets name the same classes in the same order.

    Args:
        classes, others: Class names of the two.
        where, there: What to call the two in the message.

    Raises:
        ForgettingError: They differ.
    """
    for ours, theirs, here, away in (
        (classes, others, where, there),
        (others, classes, there, where),
    ):
        only = [name for name in ours if name not in theirs]
        if only:
            raise ForgettingError(
                f'{here} has {len(only)} class(es) that {away} lacks, the first is {only[0]!r}; '
                'training and test data must have the same classes.'
            )
    for label, (ours, theirs) in enumerate(zip(classes, others)):
        if ours != theirs:
            raise ForgettingError(
                f'Class {label} is {ours!r} in {where} and {theirs!r} in {there}; training and '
                'test data must have their classes in the same order.'
            )


def read_image(path: str, small: bool = False) -> Image.Image:
    """An image file in RGB, turned as its EXIF data say.

    Args:
        path: The file.
        small: Read a JPEG at an eighth of its size, every byte of it. Defaults to False.

    Raises:
        ForgettingError: It cannot be decoded, or its values are none of 8 bits.
    """
    try:
        with Image.open(path) as image:
            if small:
                image.draft('RGB', (1, 1))
            if image.mode[0] in 'IF':  # grey of more than 8 bits, which PIL would cut off
                least, most = image.getextrema()
                # Floats from 0 to 1, which would all be black, or NaN, which no comparison finds.
                if not 0 <= least <= most <= 255 or (image.mode == 'F' and most <= 1):
                    raise ValueError(
                        f'its values are from {least:g} to {most:g}, and an image in RGB has 0 to '
                        '255; save it with 8 bits'
                    )
            return ImageOps.exif_transpose(image).convert('RGB')
    except Exception as error:  # PIL's decoders raise whatever a broken file leads them to
        raise ForgettingError(f'Image {path!r} cannot be decoded: {error}.') from error


def _decode_all(paths: Sequence[str]) -> None:
    """Decode every file, this process its share of them."""
    rank, world_size = get_dist_info()
    if len(paths) >= _MANY:
        print_log(
            f'Decoding {len(paths)} images once to find broken files (verify="none" leaves this '
            'out).',
            logger='current',
        )

    def problem(path: str) -> str | None:
        try:
            read_image(path, small=True)
        except ForgettingError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        found = [text for text in threads.map(problem, paths[rank::world_size]) if text]
    if found:
        more = f' So it is with {len(found) - 1} more of the files.' if found[1:] else ''
        raise ForgettingError(found[0] + more)
