"""The same images with what the detector finds before and after forgetting."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Sequence

import cv2
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet.visualization import DetLocalVisualizer
from torch.utils.data import Dataset

from mmgslora.datasets.protocol import Protocol
from mmgslora.families.drawing import BeforeAfter, Drawing, Found
from mmgslora.report.charts import DPI, INK, as_text

_TRIES = 5  # images asked about at most, for each that is drawn
# Strong colours, told apart with colour blindness as far as ten can be; the next ten classes get
# them lighter, the next ten darker.
_COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#D55E00')
_COLOURS += ('#56B4E9', '#F0E442', '#882255', '#88CC44', '#7A68C8')
_SIDE = 440  # pixels that an image is wide, or less where it is high
_GAP, _TITLE, _LINE, _TAG = 18, 44, 26, 20


class DetectionDrawing(Drawing):
    """Boxes with names and scores, side by side, drawn by MMDetection's visualizer."""

    num_images = 6
    rule = (
        'images that show a class to forget and one that stays, or, where none does, a class to '
        'forget; preferred are those in which the model found them before any forgetting'
    )

    def choose(
        self, dataset: Dataset, protocol: Protocol, look: Callable[[int], Found], count: int
    ) -> dict[int, Found]:
        """The first images in which an object of both sides is found with an IoU of .5.

        Where these are too few, the first that show both sides. Where none does, the same with the
        side to forget alone.
        """
        asked = {protocol.classes.index(name) for task in protocol.tasks for name in task}
        gone = {protocol.classes.index(name) for name in protocol.forgotten}
        stay = set(range(len(protocol.classes))) - asked - gone
        both = _first(dataset, (asked, stay), look, count)
        return both or _first(dataset, (asked,), look, count)

    def found(self, sample: DetDataSample) -> Found:
        instances = sample.pred_instances
        instances = instances[instances.scores >= self.score_thr]
        return {key: instances[key].tolist() for key in ('bboxes', 'scores', 'labels')}

    def figure(self, shown: BeforeAfter) -> Figure:
        infos, classes, forget = shown.infos, shown.classes, shown.forget
        drawn = [
            [_drawn(info, found, classes, forget, name) for found, name in ((a, False), (b, True))]
            for info, a, b in zip(infos, shown.before, shown.after)
        ]
        # Narrow pages get one pair to a row; six pairs would make a very long one.
        per_row = 2 if len(infos) > 3 else 1
        rows = [drawn[i : i + per_row] for i in range(0, len(drawn), per_row)]
        heights = [max(side.shape[0] for pair in row for side in pair) for row in rows]
        width = per_row * 2 * (_SIDE + _GAP) + _GAP
        kind = 'class' if len(forget) == 1 else 'classes'
        legend = textwrap.wrap(
            f'Dashed box: ground truth of the forgotten {kind} {", ".join(forget)}. Other boxes: '
            f'detections with a score of at least {self.score_thr:g}.',
            width // 11,
        )
        height = _TITLE + sum(h + _GAP for h in heights) + _LINE * len(legend) + _GAP
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor='white')
        top = height - _TITLE
        for row, row_height in zip(rows, heights):
            for column, image in enumerate(side for pair in row for side in pair):
                left = _GAP + column * (_SIDE + _GAP) + (_SIDE - image.shape[1]) // 2
                figure.figimage(image, left, top - image.shape[0])
                if row is rows[0]:
                    middle = left + image.shape[1] / 2
                    figure.text(
                        middle / width,
                        1 - 0.6 * _TITLE / height,
                        ('before', 'after')[column % 2],
                        ha='center',
                        va='center',
                        fontweight='bold',
                        color=INK,
                    )
            top -= row_height + _GAP
        text = as_text('\n'.join(legend))
        figure.text(_GAP / width, _GAP / height, text, va='bottom', fontsize=8, color=INK)
        return figure


def _first(
    dataset: Dataset, sides: Sequence[set[int]], look: Callable[[int], Found], count: int
) -> dict[int, Found]:
    """Indices of the images with objects of all sides; first come those that ``look`` finds."""
    seen: dict[int, Found] = {}
    good: list[int] = []
    for index in range(len(dataset)):
        instances = dataset.get_data_info(index)['instances']
        labels = {item['bbox_label'] for item in instances}
        if all(labels & side for side in sides):
            seen[index] = look(index)
            labels = _found_labels(seen[index], instances)
            if all(labels & side for side in sides):
                good.append(index)
        # A detector that finds little must not be asked about the whole data set.
        if len(good) == count or len(seen) == _TRIES * count:
            break
    chosen = [*good, *(index for index in seen if index not in good)][:count]
    return {index: seen[index] for index in sorted(chosen)}


def _drawn(
    info: dict, found: Found, classes: Sequence[str], forget: Collection[str], named: bool
) -> np.ndarray:
    """An image in the size of the page with its detections, forgotten true objects dashed."""
    image = cv2.imread(info['img_path'])[..., ::-1]
    height, width = image.shape[:2]
    scale = min(_SIDE / width, 1.3 * _SIDE / height)
    # Small images keep their pixels; large ones are averaged, or thin things would vanish.
    how = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    size = (round(scale * width), round(scale * height))
    visualizer = DetLocalVisualizer()
    visualizer.set_image(cv2.resize(image, size, interpolation=how))
    boxes = _clipped(found['bboxes'], scale, size)
    colours = [palette(len(classes))[label] for label in found['labels']]
    tags = [f'{classes[x]} {score:.2f}' for x, score in zip(found['labels'], found['scores'])]
    if len(boxes):
        visualizer.draw_bboxes(boxes, edge_colors=colours, line_widths=3, alpha=1)
    truth = [item for item in info['instances'] if classes[item['bbox_label']] in forget]
    if truth:
        dashed = _clipped([item['bbox'] for item in truth], scale, size, outside=5)
        # Black dashes on a white line are seen on any background.
        visualizer.draw_bboxes(dashed, edge_colors='w', line_widths=3, alpha=1)
        style = [(0, (3, 2))] * len(dashed)
        visualizer.draw_bboxes(dashed, edge_colors='k', line_styles=style, line_widths=3, alpha=1)
        if named:
            tags += [classes[item['bbox_label']] for item in truth]
            boxes = np.concatenate([boxes, dashed])
            colours += [(255, 255, 255)] * len(truth)
    taken: list[tuple[float, float]] = []
    for tag, (left, top, _, _), colour in zip(tags, boxes, colours):
        # Above its box; inside where the image ends, and below labels that are there already.
        place = [min(left - 1, size[0] - 9 * len(tag)), max(top - _TAG, 0)]
        while any(abs(place[0] - x) < 60 and abs(place[1] - y) < _TAG for x, y in taken):
            place[1] += 4
        taken.append(tuple(place))
        visualizer.draw_texts(
            as_text(tag),
            np.array(place),
            colors='k' if np.dot(colour, (0.299, 0.587, 0.114)) > 127 else 'w',
            font_sizes=10,
            bboxes=dict(facecolor=tuple(c / 255 for c in colour), edgecolor='none', pad=1),
        )
    return visualizer.get_image()


def palette(count: int) -> list[tuple[int, int, int]]:
    """A colour for each of ``count`` classes, RGB of 0 to 255; after thirty they come again."""
    strong = np.array([to_rgb(colour) for colour in _COLOURS])
    shades = np.concatenate([strong, 0.45 + 0.55 * strong, 0.6 * strong])
    return [tuple((255 * shades[i % len(shades)]).astype(int).tolist()) for i in range(count)]


def _clipped(
    boxes: Sequence[Sequence[float]], scale: float, size: tuple[int, int], outside: float = 0
) -> np.ndarray:
    """Boxes in the pixels of the page, a little larger where asked for, cut at the image's edge."""
    grown = np.array(boxes, float).reshape(-1, 4) * scale + np.array([-1, -1, 1, 1]) * outside
    return grown.clip(1, np.tile(size, 2) - 1)


def _found_labels(found: Found, instances: list[dict]) -> set[int]:
    """Labels of the objects that a detection of their class covers with IoU >= .5."""
    boxes, truth = (
        torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
        for rows in (found['bboxes'], [item['bbox'] for item in instances])
    )
    return {
        item['bbox_label']
        for item, row in zip(instances, bbox_overlaps(truth, boxes).tolist())
        if any(iou >= 0.5 and item['bbox_label'] == x for iou, x in zip(row, found['labels']))
    }
