"""The head of torchvision's ImageNet models, cut down to some of the 1000 classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.models.heads import LinearHead
from mmgslora.models.vision_transformer import published_weights


def head_rows(folder_names: Sequence[str], all_folder_names: Sequence[str]) -> list[int]:
    """The row of an ImageNet head for each class folder.

    Args:
        folder_names: Names of the class folders (wnids such as 'n01440764') in label order.
        all_folder_names: Those of all classes of the head in the order of its rows, which is
            sorted in torchvision.

    Returns:
        Row numbers, in the order of ``folder_names``.

    Raises:
        ForgettingError: A name is unknown or there twice, or ``all_folder_names`` is not sorted.
    """
    if list(all_folder_names) != sorted(set(all_folder_names)):
        raise ForgettingError(
            'The list of all class folders is not in sorted order or has one of them twice; the '
            "rows of torchvision's heads are in sorted order, each name once."
        )
    row_of = {name: row for row, name in enumerate(all_folder_names)}
    for i, name in enumerate(folder_names):
        if name not in row_of:
            raise ForgettingError(
                f'Class folder {name!r} is none of the {len(row_of)} of the head, which are '
                f'named as {next(iter(row_of), "no class")!r} is.'
            )
        if name in folder_names[:i]:
            raise ForgettingError(f'Class folder {name!r} is there twice; give each class once.')
    return [row_of[name] for name in folder_names]


def _names(source: str | Path | Sequence[str]) -> list[str]:
    """Names as they are, one per line of a file, or of the folders in a folder, sorted."""
    if not isinstance(source, (str, Path)):
        return list(source)
    path = Path(source)
    if path.is_dir():  # the order of torchvision's ImageFolder
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    try:
        return path.read_text().split()
    except (OSError, ValueError) as error:
        raise ForgettingError(
            f'{str(path)!r} is no folder of class folders and no text file with one name per '
            f'line: {error}'
        ) from error


def _published_head(arch: str, weights: str) -> tuple[Tensor, Tensor]:
    state, _ = published_weights(arch, weights)
    return state['heads.head.weight'], state['heads.head.bias']


@MODELS.register_module()
class ImageNetHead(LinearHead):
    """A :class:`LinearHead` with the rows of a published 1000-way head for some of its classes.

    With ``VisionTransformer`` of the same ``arch`` and ``weights`` this is a classifier that needs
    no training; the papers' ImageNet100 model, for 100 classes.

    Args:
        folder_names: The classes in label order: a list of class-folder names (wnids), a text
            file with one per line, or the folder that holds the class folders, e.g.
            'data/imagenet100/train'.
        all_folder_names: The 1000 classes in sorted order, in the same forms, e.g.
            'data/imagenet100/imagenet_folder_names.txt'.
        arch: As for ``VisionTransformer``. Defaults to 'vit_b_16'.
        weights: As for ``VisionTransformer``. Defaults to 'IMAGENET1K_V1'.

    Attributes:
        all_folder_names: Names of all classes of the published head, in the order of its rows.
        rows: The row of the published head for each class.

    Raises:
        ForgettingError: A list cannot be read, the names do not fit the head, or the weights
            cannot be had.
    """

    def __init__(
        self,
        folder_names: str | Sequence[str],
        all_folder_names: str | Sequence[str],
        arch: str = 'vit_b_16',
        weights: str = 'IMAGENET1K_V1',
    ) -> None:
        all_names = _names(all_folder_names)
        rows = head_rows(_names(folder_names), all_names)
        weight, bias = _published_head(arch, weights)
        if len(all_names) != len(weight):
            raise ForgettingError(
                f'The list of all class folders has {len(all_names)} names; the head of {arch} '
                f'has {len(weight)} rows.'
            )
        super().__init__(weight.shape[1], len(rows))
        self.arch, self.weights = arch, weights
        self.all_folder_names, self.rows = all_names, rows
        with torch.no_grad():
            self.weight.copy_(weight[rows])
            self.bias.copy_(bias[rows])

    def published_rows(self) -> tuple[Tensor, Tensor]:
        """Weight (1000, D) and bias (1000,) of the published head, all classes of it."""
        return _published_head(self.arch, self.weights)
