"""Training data as if some classes had never been asked for: what the oracle is trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from mmgslora.datasets.views import labels_of
from mmgslora.errors import ForgettingError


@DATASETS.register_module()
class WithoutClasses(Dataset):
    """A data set without the objects of some classes; labels and class names stay as they are.

    In detection the boxes of these classes go, and with them the images that show nothing else;
    where other objects remain, the unlabelled ones are background, as after a removal request. In
    classification the images of these classes go.

    Args:
        dataset: The data set, or its config.
        classes: Names of the classes to leave out. Lists of names (the tasks of a protocol) are
            joined.

    Raises:
        ForgettingError: A name is unknown, or nothing is left.
    """

    def __init__(self, dataset: BaseDataset | dict, classes: Sequence[str | Sequence[str]]) -> None:
        self.base = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.base.full_init()
        names = [n for entry in classes for n in ([entry] if isinstance(entry, str) else entry)]
        known = tuple(self.base.metainfo['classes'])
        for name in names:
            if name not in known:
                raise ForgettingError(
                    f'Class {name!r} to leave out is unknown; the data set has {", ".join(known)}.'
                )
        self._gone = {known.index(name) for name in names}
        self._indices = [
            i for i in range(len(self.base)) if labels_of(self.base.get_data_info(i)) - self._gone
        ]
        if not self._indices:
            raise ForgettingError(f'Without {", ".join(names)} no training image is left.')

    @property
    def metainfo(self) -> dict:
        return self.base.metainfo

    def full_init(self) -> None:
        """Nothing to do; MMEngine calls it."""

    def get_data_info(self, index: int) -> dict:
        """What the wrapped data set knows of an image, less the boxes that are left out."""
        info = copy.deepcopy(self.base.get_data_info(self._indices[index]))
        if 'instances' in info:
            info['instances'] = [
                item for item in info['instances'] if item['bbox_label'] not in self._gone
            ]
        return info

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        # As in MMEngine's data sets: a pipeline may give up on an image, then another one serves.
        for step in range(len(self)):
            data = self.base.pipeline(self.get_data_info((index + step) % len(self)))
            if data is not None:
                return data
        raise ForgettingError('The training pipeline returned nothing for every image.')
