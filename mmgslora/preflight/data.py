"""The data of a run: files, categories, boxes, images, and what each task finds in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from mmgslora.audit.verdict import limits_of
from mmgslora.datasets.views import check_held_out
from mmgslora.errors import ForgettingError
from mmgslora.preflight.annotations import (
    annotation_file,
    category_problems,
    dropped_boxes,
    image_problems,
    innermost,
)
from mmgslora.preflight.checkpoint import first_difference
from mmgslora.preflight.plan import Plan, find_class
from mmgslora.report.certificate import requests_of


def files(plan: Plan) -> Iterator[str]:
    """Annotation files, image folders and images that a data set's config names.

    Wrapped data sets (``dataset=dict(...)``) are followed; remote paths are left to MMEngine. Test
    data of a run that measures on 'val' are never read.
    """
    for split, loader in plan.loaders.items():
        if split == 'test' != plan.measured_on:
            continue
        dataset = innermost(loader['dataset'])
        kind = find_class(dataset['type'], DATASETS)
        prefix = dataset.get('data_prefix', {})
        if not isinstance(prefix, Mapping):
            yield (
                f'data_prefix ({split}) is {prefix!r}; it can be a dict, such as '
                "dict(img='train/')."
            )
            continue
        made = getattr(kind, 'makes_its_files', False)
        if not made:
            yield from _absent(dataset)
        file = annotation_file(dataset)
        content = plan.annotations.get(file.resolve()) if file is not None else None
        if isinstance(content, ForgettingError):
            yield str(content)
        # Other data sets in COCO's format, such as LVIS, number their labels in their own way.
        elif content is not None and kind.load_data_list is CocoDataset.load_data_list:
            classes = kind._load_metainfo(dataset.get('metainfo')).get('classes') or ()
            if isinstance(classes, str):
                yield (
                    f'metainfo.classes ({split}) is the text {classes!r}; it can be a list, each '
                    'text: one class alone has a comma behind it, as in (name,).'
                )
                continue
            names = [category['name'] for category in content['categories']]
            yield from category_problems(file, names, tuple(classes))
            dropped = dropped_boxes(content, classes)
            if dropped:
                plan.notes.append(
                    f'Left out of the boxes of {str(file)!r} ({split}): {_counts(dropped)}.'
                )
            if split == 'train' and dropped.total() == len(content['annotations']) > 0:
                yield f'No box of {str(file)!r} can be trained on: {_counts(dropped)}.'
            folder = Path(dataset.get('data_root') or '', *prefix.values())
            if folder.is_dir():
                listed = content['images']
                if (dataset.get('filter_cfg') or {}).get('filter_empty_gt'):
                    shown = {item['image_id'] for item in content['annotations']}
                    listed = [image for image in listed if image['id'] in shown]
                yield from image_problems(listed, folder, file)


def workers(plan: Plan) -> Iterator[str]:
    """What is asked of the training loader's processes and not done."""
    if plan.loaders['train'].get('persistent_workers'):
        plan.notes.append(
            'train_dataloader.persistent_workers is taken as False: workers that outlive an epoch '
            'would not take the seeds of the next one.'
        )
    yield from ()


def evaluated_files(plan: Plan) -> Iterator[str]:
    """The file that an evaluator reads is that of its data loader."""
    for split, loader in plan.loaders.items():
        loaded = annotation_file(loader['dataset'])
        for read in _evaluated(plan, split):
            if loaded is not None and Path(read).resolve() != loaded.resolve():
                yield (
                    f'{split}_evaluator.ann_file is {read!r}, but {split}_dataloader loads '
                    f'{str(loaded)!r}; both must be the same file.'
                )


def measured_images(plan: Plan) -> Iterator[str]:
    """Every object that an evaluator counts is in an image that the model is shown, and once."""
    split = plan.measured_on
    infos = (plan.held_out.get_data_info(i) for i in range(len(plan.held_out)))
    shown = Counter(info['img_id'] for info in infos if {'img_id', 'instances'} <= info.keys())
    twice = [image for image, count in shown.items() if count > 1]
    if twice:
        yield (
            f'{split}_dataloader has {len(twice)} image ids more than once, the first is '
            f'{twice[0]!r}, and {split}_evaluator would take them for one image; give a data set '
            'in which every image has an id of its own: one annotation file of all images instead '
            'of several, and none repeated.'
        )
        return
    file = annotation_file(plan.loaders[split]['dataset'])
    content = plan.annotations.get(file.resolve()) if file is not None else None
    if content is None or not any(_evaluated(plan, split)):
        return
    used = {c['id'] for c in content['categories'] if c['name'] in plan.views.classes}
    counted = {x['image_id'] for x in content['annotations'] if x['category_id'] in used}
    left_out = counted.intersection(x['id'] for x in content['images']) - shown.keys()
    if left_out:
        yield (
            f'{split}_dataloader leaves out {len(left_out)} of the {len(content["images"])} images '
            f'of {str(file)!r}, whose objects {split}_evaluator would count as missed; show all '
            '(indices, filter_cfg), or leave ann_file out of the evaluator.'
        )


def images(plan: Plan) -> Iterator[str]:
    """Every image that is trained or measured on can be decoded (``--check-data``)."""
    if not plan.every_image:
        return
    for split, dataset in (('training', plan.views.base), (plan.measured_on, plan.held_out)):
        paths = [dataset.get_data_info(i).get('img_path') for i in range(len(dataset))]
        broken = [path for path in paths if path and not _decodes(path)]
        if broken:
            yield (
                f'{len(broken)} of {len(paths)} {split} images cannot be decoded, the first is '
                f'{broken[0]!r}; replace them, or take them out of the data.'
            )


def classes(plan: Plan) -> Iterator[str]:
    """Training data, the data to measure on and the model mean the same class by a label."""
    trained, split = plan.views.classes, f'{plan.measured_on}_dataloader'
    apart = first_difference(plan.held_out.metainfo.get('classes') or (), trained)
    if apart:
        yield (
            f'{split}.dataset has {apart[0]}, train_dataloader.dataset {apart[1]}; both must have '
            'the same classes in the same order, by metainfo.classes or, of folders, classes.'
        )
    count = plan.model.num_classes
    if count != len(trained):
        yield (
            f'The head of the model has {count} classes, the data set {len(trained)}; a label must '
            'mean the same in both, so name in the data set all that the model was trained on, or '
            'take a model of these classes.'
        )


def protocol(plan: Plan) -> Iterator[str]:
    """Each task names known classes and finds images to train on and objects to be measured on."""
    try:
        asked = plan.protocol
    except ForgettingError as error:
        yield str(error)
        return
    for task in range(1, len(asked) + 1):
        try:
            plan.views.set_partition(asked.partition(task))
        except ForgettingError as error:
            yield str(error)
    yield from _asked_of_report(plan, len(asked))
    unseen = check_held_out(plan.held_out, asked.tasks, asked.partition(1).retain)
    if unseen:
        plan.notes.append(
            f'No object of {", ".join(unseen)} in the data to measure on: whether they are '
            'forgotten is not measured.'
        )


def _asked_of_report(plan: Plan, tasks: int) -> Iterator[str]:
    """What the config says for report and certificates: requests and thresholds."""
    for check, arguments in (
        (requests_of, (plan.plain.get('requests'), tasks)),
        (limits_of, (plan.plain.get('thresholds'),)),
    ):
        try:
            check(*arguments)
        except ForgettingError as error:
            yield str(error)


def _evaluated(plan: Plan, split: str) -> list[str]:
    """The local annotation files that the evaluators of a split read."""
    given = plan.plain.get(f'{split}_evaluator') or []
    found = [x.get('ann_file') for x in ([given] if isinstance(given, Mapping) else given)]
    return [file for file in found if file and '://' not in file]


def _absent(dataset: Mapping[str, Any]) -> Iterator[str]:
    root = dataset.get('data_root') or ''
    folders = dataset.get('data_prefix', {}).values()
    wanted = [('Annotation file', dataset.get('ann_file'))] + [('Image folder', f) for f in folders]
    for what, name in wanted:
        if name and '://' not in f'{root}{name}' and not Path(root, name).exists():
            yield (
                f'{what} {str(Path(root, name))!r} does not exist; put the data there, or set '
                'data_root, ann_file and data_prefix in the config.'
            )


def _counts(dropped: Mapping[str, int]) -> str:
    return ', '.join(f'{count} {why}' for why, count in dropped.items())


def _decodes(path: str) -> bool:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return False
    if not data.size:
        return False
    # A JPEG that was cut off decodes, grey from there on: no end comes after its last scan. What
    # some cameras write behind the end does not matter, nor does a small one in its header.
    text = data.tobytes()
    cut = text.startswith(b'\xff\xd8') and text.rfind(b'\xff\xd9') < text.rfind(b'\xff\xda')
    return not cut and cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
