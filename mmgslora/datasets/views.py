"""The two sides of a forgetting task over one data set: the forget view and the retain view."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler

from mmgslora.datasets.protocol import ClassPartition, category_ids_of
from mmgslora.errors import ForgettingError


@DATASETS.register_module()
class ForgettingViews(Dataset):
    """Forget view and retain view over any MMDetection box data set.

    An image with a cat and a dog, forget dog: it stands in both views, in the forget view with
    its dog boxes only, in the retain view with its cat boxes only. Every other object counts as
    background there, as in the authors' code (their issue #4).

    Items ``0 .. num_forget - 1`` are the forget view, the rest the retain view. Which images they
    are is settled by :meth:`set_partition` at the start of each task.

    Args:
        dataset: The data set, or its config. Its pipeline must end in ``PackDetInputs``.
        data_ratio: Share of the images of each view that a task may use, (0, 1]. Defaults to
            0.1, the papers' value.
        seed: Seed of the draw, used together with the number of the task. Defaults to 0.

    Raises:
        ForgettingError: ``data_ratio`` is out of range; or, from :meth:`set_partition`, a class
            to forget has no training image or no image is left to retain.
    """

    def __init__(self, dataset: BaseDataset | dict, data_ratio: float = 0.1, seed: int = 0):
        if not 0 < data_ratio <= 1:
            raise ForgettingError(f'data_ratio is {data_ratio}; it must be above 0, at most 1.')
        self.base = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.base.full_init()
        self.data_ratio = data_ratio
        self.seed = seed
        self.classes: tuple[str, ...] = tuple(self.base.metainfo['classes'])
        self._labels_of = [
            {
                item['bbox_label']
                for item in self.base.get_data_info(i)['instances']
                if not item.get('ignore_flag')
            }
            for i in range(len(self.base))
        ]
        self._indices: dict[str, list[int]] = {'forget': [], 'retain': []}
        self._kept_labels: dict[str, set[int]] = {}

    @property
    def metainfo(self) -> dict:
        return self.base.metainfo

    @property
    def category_ids(self) -> dict[int, str] | None:
        """Class name of every category id of a COCO-format data set; None for other data sets."""
        return category_ids_of(self.base)

    @property
    def num_forget(self) -> int:
        return len(self._indices['forget'])

    @property
    def num_retain(self) -> int:
        return len(self._indices['retain'])

    def images_per_class(self) -> dict[str, int]:
        """Number of training images that hold each class."""
        count = Counter(label for labels in self._labels_of for label in labels)
        return {name: count[label] for label, name in enumerate(self.classes)}

    def set_partition(self, partition: ClassPartition) -> None:
        """Draw the images of both views for one task.

        The draw is ``int(data_ratio * n)`` of the ``n`` images of a view, as in the authors'
        code; should it miss a class of the view altogether, one image of it is added (ours).
        """
        for side in ('forget', 'retain'):
            names = getattr(partition, side)
            labels = {self.classes.index(name) for name in names}
            pool = [i for i, found in enumerate(self._labels_of) if found & labels]
            if side == 'forget' or not pool:
                counts = self.images_per_class()
                bare = [name for name in names if not counts[name]]
                if bare:
                    raise ForgettingError(
                        f'Class {bare[0]!r} ({side} in task {partition.task}) has no training '
                        'image; every class to forget needs at least one.'
                    )
            rng = np.random.default_rng([self.seed, partition.task, side == 'retain'])
            order = [pool[i] for i in rng.permutation(len(pool))]
            drawn = order[: int(self.data_ratio * len(pool))]
            for label in sorted(labels - {x for i in drawn for x in self._labels_of[i]}):
                drawn += [i for i in order if label in self._labels_of[i]][:1]
            self._indices[side] = list(dict.fromkeys(drawn))
            self._kept_labels[side] = labels

    def image_ids(self, side: str) -> list[int]:
        """Image ids of one view ('forget' or 'retain'), in the order of its items."""
        return [self.base.get_data_info(i)['img_id'] for i in self._indices[side]]

    def __len__(self) -> int:
        return self.num_forget + self.num_retain

    def __getitem__(self, index: int) -> dict:
        side = 'forget' if index < self.num_forget else 'retain'
        indices = self._indices[side]
        position = index - (0 if side == 'forget' else self.num_forget)
        # A pipeline may give up on an image (a crop without boxes); then the next one serves.
        for step in range(len(indices)):
            info = copy.deepcopy(self.base.get_data_info(indices[(position + step) % len(indices)]))
            info['instances'] = [
                item for item in info['instances'] if item['bbox_label'] in self._kept_labels[side]
            ]
            data = self.base.pipeline(info)
            if data is not None:
                data['data_samples'].set_metainfo(dict(view=side))
                return data
        raise ForgettingError(
            f'The training pipeline returned nothing for each of the {len(indices)} images of '
            f'the {side} view; use milder crops.'
        )


@DATA_SAMPLERS.register_module()
class PairedSampler(Sampler):
    """Alternates forget and retain items, so that any even batch holds as many of each.

    An epoch is one pass over the retain view; the forget view is cycled, every image as often as
    any other over the epochs. With several processes each takes every n-th pair.

    Args:
        dataset: A :class:`ForgettingViews`.
        seed: Seed of the order, used together with the epoch. Defaults to 0.
    """

    def __init__(self, dataset: ForgettingViews, seed: int | None = 0) -> None:
        self.rank, self.world_size = get_dist_info()
        self.num_forget, self.num_retain = dataset.num_forget, dataset.num_retain
        self.pairs = -(-self.num_retain // self.world_size)
        self.seed = seed or 0
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass (MMEngine's ``DistSamplerSeedHook`` calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return 2 * self.pairs

    def __iter__(self) -> Iterator[int]:
        total = self.pairs * self.world_size
        retain = np.resize(self._order('retain', self.epoch), total)
        start = self.epoch * total
        rounds = range(start // self.num_forget, (start + total - 1) // self.num_forget + 1)
        forget = np.concatenate([self._order('forget', r) for r in rounds])
        forget = forget[start % self.num_forget :][:total]
        for pair in range(self.rank, total, self.world_size):
            yield int(forget[pair])
            yield self.num_forget + int(retain[pair])

    def _order(self, side: str, round_: int) -> np.ndarray:
        count = self.num_forget if side == 'forget' else self.num_retain
        return np.random.default_rng([self.seed, round_, side == 'retain']).permutation(count)
