"""The two sides of a forgetting task over one data set: the forget view and the retain view."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler

from mmgslora.datasets.made_items import MadeItems
from mmgslora.datasets.protocol import ClassPartition, category_ids_of
from mmgslora.errors import ForgettingError
from mmgslora.settings import Count, NonNegative, NonNegativeCount, PositiveShare, checked


@DATASETS.register_module()
class ForgettingViews(Dataset):
    """Forget view and retain view over any data set of MMEngine with boxes or with one label each.

    An image with a cat and a dog, forget dog: it stands in both views, in the forget view with
    its dog boxes only, in the retain view with its cat boxes only. Every other object counts as
    background there, as in the authors' code (their issue #4). An image that shows a missing
    class, be it as a crowd, is in neither view.

    Items ``0 .. num_forget - 1`` are the forget view, the rest the retain view. Which images they
    are is settled by :meth:`set_partition` at the start of each task.

    Args:
        dataset: The data set, or its config. What it knows of an image holds ``instances`` with a
            ``bbox_label`` each, or a ``gt_label``; its pipeline makes ``data_samples``.
        data_ratio: Share of the images of each view that a task may use, (0, 1]. Defaults to
            0.1, the papers' value.
        min_images: Images of every class at least, where there are as many. Defaults to 10.
        few_shot: Use exactly this many images of every class instead. An image counts for every
            class whose boxes are kept in it; where it shows one more of a class that has its
            number already, the boxes of that class are left out, and such images are taken last.
            Defaults to None: ``data_ratio`` decides.
        seed: Seed of the draw, used together with the number of the task. Defaults to 0.
        redraw: Whether the pipeline draws what it draws (a flip, a crop) anew whenever an image is
            asked for, or once for a task; with 'forget' anew in the forget view alone. What is
            drawn once depends on ``seed``, task and image alone, and up to ``keep_gb`` of what the
            pipeline made is kept. Defaults to True.
        keep_gb: Memory for that, in 10^9 bytes; worker processes keep nothing. Defaults to 1.

    Raises:
        ForgettingError: A setting is out of range, the data set is a wrapper such as
            ``RepeatDataset``, or its pipeline mixes images; or, from :meth:`set_partition`, a class
            to forget has no training image, a class has fewer than ``few_shot``, or no image is
            left to retain.
    """

    @checked
    def __init__(
        self,
        dataset: Any,
        data_ratio: PositiveShare = 0.1,
        min_images: Count = 10,
        few_shot: Count | None = None,
        seed: NonNegativeCount = 0,
        redraw: bool | Literal['forget'] = True,
        keep_gb: NonNegative = 1.0,
    ) -> None:
        self.base = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if hasattr(self.base, 'datasets'):
            raise ForgettingError(
                f'The data set of the views is a {type(self.base).__name__} of '
                f'{len(self.base.datasets)}; give one data set: one annotation file that lists the '
                'images of all, whose names may have folders, or one folder of class folders.'
            )
        if hasattr(self.base, 'dataset'):
            raise ForgettingError(
                f'The data set of the views is a {type(self.base).__name__}, which wraps others; '
                'give the innermost data set, for the views draw and repeat images themselves.'
            )
        for step in _steps(getattr(self.base, 'pipeline', None)):
            if hasattr(step, 'get_indexes'):
                raise ForgettingError(
                    f'The training pipeline has {type(step).__name__}, which mixes other images '
                    'into one, and with them objects that are not of its view; take it out of the '
                    'pipeline of the data set.'
                )
        self.base.full_init()
        self.data_ratio, self.min_images = data_ratio, min_images
        self.few_shot = few_shot
        self.seed = seed
        self.redraw, self._made = redraw, MadeItems(keep_gb * 1e9)
        self.classes: tuple[str, ...] = tuple(self.base.metainfo['classes'])
        self._labels_of, self._shown_in = [], []  # without and with crowds
        for index in range(len(self.base)):
            info = self.base.get_data_info(index)
            self._labels_of.append(labels_of(info))
            self._shown_in.append(labels_of(info, crowds=True))
        # Per view: the images, and which labels are kept in each.
        self._drawn: dict[str, list[tuple[int, set[int]]]] = {'forget': [], 'retain': []}

    def __deepcopy__(self, memo: dict) -> ForgettingViews:
        """A copy draws its own images of the same data set: MMEngine copies what it loads from."""
        other = copy.copy(self)
        other._drawn = dict(self._drawn)
        other._made = self._made.emptied()
        return other

    @property
    def metainfo(self) -> dict:
        return self.base.metainfo

    @property
    def category_ids(self) -> dict[int, str] | None:
        """Class name of every category id of a COCO-format data set; None for other data sets."""
        return category_ids_of(self.base)

    @property
    def num_forget(self) -> int:
        return len(self._drawn['forget'])

    @property
    def num_retain(self) -> int:
        return len(self._drawn['retain'])

    @property
    def forget_items(self) -> list[list[int]]:
        """For every class to forget the items of the forget view that show it."""
        items: dict[int, list[int]] = {}
        for item, (_, kept) in enumerate(self._drawn['forget']):
            for label in kept:
                items.setdefault(label, []).append(item)
        return [items[label] for label in sorted(items)]

    def set_partition(self, partition: ClassPartition) -> None:
        """Draw the images of both views for one task.

        With ``data_ratio`` the draw is ``int(data_ratio * n)`` of the ``n`` images of a view, as in
        the authors' code; of a class that this shows in fewer than ``min_images`` images more are
        added, as many as there are (ours).
        """
        self._made.clear(self.seed, partition.task)
        hidden = set(partition.labels('missing'))
        shown = [i for i, found in enumerate(self._shown_in) if not found & hidden]
        for side in ('forget', 'retain'):
            labels = set(partition.labels(side))
            pool = [i for i in shown if self._labels_of[i] & labels]
            self._check_counts(pool, partition, side)
            rng = np.random.default_rng([self.seed, partition.task, side == 'retain'])
            order = [pool[i] for i in rng.permutation(len(pool))]
            draw = self._share if self.few_shot is None else self._few
            self._drawn[side] = draw(order, labels)

    def _check_counts(self, pool: list[int], partition: ClassPartition, side: str) -> None:
        found = Counter(label for i in pool for label in self._labels_of[i])
        counts = {name: found[self.classes.index(name)] for name in getattr(partition, side)}
        for name, count in counts.items():
            if not count and (side == 'forget' or not pool):
                raise ForgettingError(
                    f'Class {name!r} ({side} in task {partition.task}) has no training image; '
                    'every class to forget needs at least one.'
                )
        few = {name: n for name, n in counts.items() if n < (self.few_shot or 0)}
        if few:
            least = min(few.values())
            ways = [f'few_shot={least}'] if least else []
            ways += ['train_cfg.protocol.missing with these'] if side == 'retain' else []
            raise ForgettingError(
                f'few_shot asks for {self.few_shot} training images of every class; of the classes '
                f'to {side} in task {partition.task} fewer have '
                f'{", ".join(f"{name!r} ({n})" for name, n in few.items())}; use '
                f'{" or ".join(ways)}.'
            )

    def _share(self, order: list[int], labels: set[int]) -> list[tuple[int, set[int]]]:
        drawn = dict.fromkeys(order[: int(self.data_ratio * len(order))])
        counts = Counter(label for i in drawn for label in self._labels_of[i])
        for label in sorted(labels):
            short = self.min_images - counts[label]
            if short > 0:  # seldom in large data, of which every look is long
                more = [i for i in order if label in self._labels_of[i] and i not in drawn][:short]
                drawn.update(dict.fromkeys(more))
                counts.update(found for i in more for found in self._labels_of[i])
        return [(i, self._labels_of[i] & labels) for i in drawn]

    def _few(self, order: list[int], labels: set[int]) -> list[tuple[int, set[int]]]:
        short = dict.fromkeys(labels, self.few_shot)
        drawn: dict[int, set[int]] = {}
        for whole_images in (True, False):
            for i in order:
                found = self._labels_of[i] & labels
                wanted = {label for label in found if short[label]}
                if wanted and i not in drawn and (wanted == found or not whole_images):
                    drawn[i] = wanted
                    for label in wanted:
                        short[label] -= 1
        return list(drawn.items())

    def image_ids(self, side: str) -> list[int]:
        """Image ids of one view ('forget' or 'retain'), in the order of its items.

        Where the data set gives its images none (``img_id``), it is their place in it, from 0.
        """
        return [self.base.get_data_info(i).get('img_id', i) for i, _ in self._drawn[side]]

    def images_of_classes(self, side: str) -> dict[str, list[int]]:
        """Ids of the images of one view that keep objects of each of its classes."""
        images: dict[str, list[int]] = {}
        for image, (_, kept) in zip(self.image_ids(side), self._drawn[side]):
            for label in sorted(kept):
                images.setdefault(self.classes[label], []).append(image)
        return images

    def __len__(self) -> int:
        return self.num_forget + self.num_retain

    def __getitem__(self, index: int) -> dict:
        once = self.redraw is False or (self.redraw == 'forget' and index >= self.num_forget)
        return self._made.get(index, self._make) if once else self._make(index)

    def _make(self, index: int) -> dict:
        side = 'forget' if index < self.num_forget else 'retain'
        drawn = self._drawn[side]
        position = index - (0 if side == 'forget' else self.num_forget)
        # A pipeline may give up on an image (a crop without boxes); then the next one serves.
        for step in range(len(drawn)):
            image, kept = drawn[(position + step) % len(drawn)]
            info = copy.deepcopy(self.base.get_data_info(image))
            if 'instances' in info:
                info['instances'] = [x for x in info['instances'] if x['bbox_label'] in kept]
            try:
                data = self.base.pipeline(info)
            except Exception as error:  # the steps of a pipeline fail in ways of their own
                raise ForgettingError(
                    f'Image {info.get("img_path")!r} of the {side} view cannot be used: '
                    f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
                ) from error
            if data is not None:
                self._check_made(data, 'instances' in info)
                data['data_samples'].set_metainfo(dict(view=side))
                return data
        raise ForgettingError(
            f'The training pipeline returned nothing for each of the {len(drawn)} images of '
            f'the {side} view; use milder crops.'
        )

    @staticmethod
    def _check_made(data: dict, boxes: bool) -> None:
        sample = data.get('data_samples')
        if sample is None:
            raise ForgettingError(
                'The training pipeline gives no data_samples; let it end in '
                "dict(type='PackDetInputs')."
            )
        if boxes and 'labels' not in sample.gt_instances:
            raise ForgettingError(
                'The training pipeline gives no boxes; let it have '
                "dict(type='LoadAnnotations', with_bbox=True)."
            )


def _steps(step: Any) -> Iterator[Any]:
    """A pipeline or a step of it, and the steps within."""
    yield step
    within = getattr(step, 'transforms', ())
    for inner in within if isinstance(within, (list, tuple)) else (within,):
        yield from _steps(inner)


def labels_of(info: dict, crowds: bool = False) -> set[int]:
    """What an image shows, as labels; crowd regions count only if asked for."""
    if 'instances' not in info:
        return {int(info['gt_label'])}
    return {x['bbox_label'] for x in info['instances'] if crowds or not x.get('ignore_flag')}


def check_held_out(
    dataset: BaseDataset, tasks: Sequence[Sequence[str]], stay: Sequence[str]
) -> list[str]:
    """Check that held-out data can say of every task whether it forgot anything, and what it cost.

    Args:
        dataset: The data set that is measured on.
        tasks: The classes of each task.
        stay: The classes that must stay and have training data, in the first task.

    Returns:
        The classes to forget that have no object there, if others of their task have.

    Raises:
        ForgettingError: No class of a task has an object there, or none that stays.
    """
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    found = {dataset.metainfo['classes'][label] for info in infos for label in labels_of(info)}
    for number, task in enumerate(tasks, 1):
        if not found.intersection(task):
            raise ForgettingError(
                f'Task {number} forgets {", ".join(task)}, and the data to measure on have no '
                'object of them; leave the task out, or give data that show them.'
            )
    if not found.intersection(stay):
        raise ForgettingError(
            f'The data to measure on have no object of {", ".join(stay)}, which must stay, so what '
            'forgetting costs could not be told; give data that show some of them.'
        )
    return [name for task in tasks for name in task if name not in found]


@DATA_SAMPLERS.register_module()
class PairedSampler(Sampler):
    """Alternates forget and retain items, so that any even batch holds as many of each.

    An epoch is one pass over the retain view, or as many pairs as it is given; the forget view is
    gone through as often as that takes. With several processes each takes every n-th pair.

    Args:
        dataset: A :class:`ForgettingViews`.
        seed: Seed of the order, used together with the epoch. Defaults to 0.
        by_class: Whether the classes to forget take turns, so that the rarest is seen as often as
            any other (ours), or their images, as in the authors' code. Defaults to True.
        pairs: Pairs of an epoch in each process; the next epoch goes on in the retain view where
            this one ended. Defaults to None: a pass.
    """

    def __init__(
        self,
        dataset: ForgettingViews,
        seed: int | None = 0,
        by_class: bool = True,
        pairs: int | None = None,
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.num_forget, self.num_retain = dataset.num_forget, dataset.num_retain
        self.by_class = by_class
        self.forget_items = dataset.forget_items if by_class else [range(self.num_forget)]
        self.whole = pairs is None
        self.pairs = -(-self.num_retain // self.world_size) if self.whole else pairs
        self.seed = seed or 0
        self.epoch = 0

    @property
    def parts(self) -> int:
        """Epochs, from the first, in which every retain item comes once."""
        return 1 if self.whole else -(-self.num_retain // (self.pairs * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass (MMEngine's ``DistSamplerSeedHook`` calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return 2 * self.pairs

    def __iter__(self) -> Iterator[int]:
        total = self.pairs * self.world_size
        retain = self._retain(total)
        turns = range(self.epoch * total, (self.epoch + 1) * total)
        for pair in range(self.rank, total, self.world_size):
            yield self._forget(turns[pair])
            yield self.num_forget + int(retain[pair])

    def _retain(self, total: int) -> np.ndarray:
        """The ``total`` retain items of this epoch."""
        count = self.num_retain
        if self.whole:
            return np.resize(_shuffled(count, self.seed, self.epoch), total)
        start = self.epoch * total  # in an endless row of shuffled passes
        rounds = range(start // count, (start + total - 1) // count + 1)
        row = np.concatenate([_shuffled(count, self.seed, r) for r in rounds])
        return row[start % count :][:total]

    def _forget(self, turn: int) -> int:
        """The forget item of a turn, in an endless row of rounds through the classes."""
        round_, place = divmod(turn, len(self.forget_items))
        label = _shuffled(len(self.forget_items), self.seed, round_, 1)[place]
        items = self.forget_items[label]
        again, place = divmod(round_, len(items))
        return items[_shuffled(len(items), self.seed, again, 2, label)[place]]


@lru_cache(maxsize=1024)
def _shuffled(count: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
