"""The same images with what the detector finds before and after forgetting."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mmgslora.errors import ForgettingError
from mmgslora.report.format import for_matplotlib
from mmgslora.report.png import write_png

# Strong, mutually distinct colours, told apart with colour blindness as far as ten can be. The next
# ten classes get them lighter, the next ten darker; then they come again, and the name on every box
# has to do.
_COLOURS = (
    '#0072B2',
    '#E69F00',
    '#009E73',
    '#CC79A7',
    '#D55E00',
    '#56B4E9',
    '#F0E442',
    '#882255',
    '#88CC44',
    '#7A68C8',
)
_INK = '#222222'
_DPI = 150
_MARGIN = 0.12
_BETWEEN_ROWS = 0.14
_TITLE_HEIGHT = 0.30
_LINE_HEIGHT = 0.17
FORGOTTEN_BOX = 'forgotten ground truth'
LABEL = 'label'

Boxes = Mapping[str, np.ndarray]


def before_after_figure(
    images: Sequence[np.ndarray],
    before: Sequence[Boxes],
    after: Sequence[Boxes],
    truth: Sequence[Boxes],
    classes: Sequence[str],
    forget: Sequence[str],
    score_thr: float = 0.3,
) -> Figure:
    """Every image twice, side by side: the detections before and after forgetting.

    Args:
        images: Pictures of shape (H, W, 3), uint8, RGB; their sizes may differ.
        before: Detections of the model before forgetting, one dict per image with
            ``bboxes`` (n, 4) as x1, y1, x2, y2 in pixels, ``scores`` and ``labels``.
        after: The same for the model after forgetting.
        truth: Ground truth, one dict per image with ``bboxes`` and ``labels``.
        classes: Class names in label order.
        forget: Names of the forgotten classes.
        score_thr: Detections below this score are not drawn.

    Raises:
        ForgettingError: The lists do not belong together, or a forgotten class is unknown.
    """
    _check(images, before, after, truth, classes, forget)
    classes, forget = ([for_matplotlib(name) for name in names] for names in (classes, forget))
    tall = float(np.median([image.shape[0] / image.shape[1] for image in images]))
    # Pictures that are not wide go two pairs to a row, or six of them make a very long page.
    pairs = 2 if len(images) > 3 and tall > 0.85 else 1
    width = 3.1 if pairs == 2 else (3.7 if tall > 0.85 else 5.4)
    lefts = [_MARGIN + pair * (2 * width + 3 * _MARGIN) for pair in range(pairs)]
    figure_width = lefts[-1] + 2 * width + 2 * _MARGIN

    sizes = [_fitted(image, width) for image in images]
    row_starts = range(0, len(images), pairs)
    row_heights = [max(height for _, height in sizes[i : i + pairs]) for i in row_starts]
    legend = _legend_text(forget, score_thr, columns=int(figure_width * 16.5) - 8)
    legend_height = _LINE_HEIGHT * (legend.count('\n') + 1) + 2 * _MARGIN
    figure_height = (
        _TITLE_HEIGHT
        + sum(row_heights)
        + _BETWEEN_ROWS * (len(row_heights) - 1)
        + legend_height
        + 0.05
    )

    figure = Figure(figsize=(figure_width, figure_height), dpi=_DPI, facecolor='white')
    # Labels are placed by their drawn size, which only a canvas can tell.
    FigureCanvasAgg(figure)
    top = figure_height - _TITLE_HEIGHT
    for row, start in enumerate(row_starts):
        for pair, index in enumerate(range(start, min(start + pairs, len(images)))):
            shown_width, shown_height = sizes[index]
            for side, boxes in enumerate((before[index], after[index])):
                cell = lefts[pair] + side * (width + _MARGIN)
                axes = figure.add_axes(
                    (
                        (cell + (width - shown_width) / 2) / figure_width,
                        (top - shown_height) / figure_height,
                        shown_width / figure_width,
                        shown_height / figure_height,
                    )
                )
                axes.set_gid(('before', 'after')[side])
                if row == 0:
                    figure.text(
                        (cell + width / 2) / figure_width,
                        (figure_height - 0.62 * _TITLE_HEIGHT) / figure_height,
                        ('before', 'after')[side],
                        ha='center',
                        va='center',
                        fontsize=11,
                        fontweight='bold',
                        color=_INK,
                    )
                _draw_image(axes, images[index], shown_width)
                _draw_boxes(
                    axes,
                    images[index],
                    boxes,
                    truth[index],
                    classes,
                    forget,
                    score_thr,
                    pixels_per_point=images[index].shape[1] / (shown_width * 72),
                    name_forgotten=side == 1,
                )
        top -= row_heights[row] + _BETWEEN_ROWS
    _draw_legend(figure, legend, legend_height)
    return figure


def draw_before_after(
    images: Sequence[np.ndarray],
    before: Sequence[Boxes],
    after: Sequence[Boxes],
    truth: Sequence[Boxes],
    classes: Sequence[str],
    forget: Sequence[str],
    path: str | os.PathLike[str],
    score_thr: float = 0.3,
) -> Path:
    """Draw :func:`before_after_figure`, which explains the arguments, into a PNG file.

    Returns:
        The path written.
    """
    figure = before_after_figure(images, before, after, truth, classes, forget, score_thr)
    return write_png(figure, path, dpi=_DPI)


def class_colour(label: int) -> str:
    """The colour of a class, the same in every picture."""
    colour = np.array(to_rgb(_COLOURS[int(label) % len(_COLOURS)]))
    shade = int(label) // len(_COLOURS) % 3
    return to_hex((colour, 0.45 + 0.55 * colour, 0.6 * colour)[shade])


def _check(
    images: Sequence[np.ndarray],
    before: Sequence[Boxes],
    after: Sequence[Boxes],
    truth: Sequence[Boxes],
    classes: Sequence[str],
    forget: Sequence[str],
) -> None:
    if not images:
        raise ForgettingError('There are no images to draw; give at least one.')
    if not len(images) == len(before) == len(after) == len(truth):
        raise ForgettingError(
            f'There are {len(images)} images, but {len(before)} detections before, '
            f'{len(after)} after and {len(truth)} ground truths; give one of each per image.'
        )
    for name in forget:
        if name not in classes:
            raise ForgettingError(
                f'Forgotten class {name!r} is unknown; the classes are: {", ".join(classes)}.'
            )


def _fitted(image: np.ndarray, width: float) -> tuple[float, float]:
    """Width and height in inches; a high picture is made narrower instead of very long."""
    height, wide = image.shape[:2]
    shown = min(width, 1.3 * width * wide / height)
    return shown, shown * height / wide


def _draw_image(axes: Axes, image: np.ndarray, shown_width: float) -> None:
    height, width = image.shape[:2]
    # Small pictures keep their pixels; large ones are averaged, or thin things would vanish.
    enlarged = shown_width * _DPI >= width
    axes.imshow(
        image,
        interpolation='nearest' if enlarged else 'antialiased',
        extent=(0, width, height, 0),
        aspect='auto',
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()


def _draw_boxes(
    axes: Axes,
    image: np.ndarray,
    boxes: Boxes,
    truth: Boxes,
    classes: Sequence[str],
    forget: Sequence[str],
    score_thr: float,
    pixels_per_point: float,
    name_forgotten: bool,
) -> None:
    height, width = image.shape[:2]
    scores = np.asarray(boxes['scores'], float)
    drawn = [i for i in np.argsort(-scores, kind='stable') if scores[i] >= score_thr]
    taken: list[Bbox] = []

    labels = []
    # From the surest to the least sure: the surest takes the best place for its label, and is
    # drawn last, above the others.
    for order, i in enumerate(drawn):
        x1, y1, x2, y2 = _inside(boxes['bboxes'][i], width, height)
        label = int(boxes['labels'][i])
        colour = class_colour(label)
        axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=colour,
                linewidth=1.6,
                zorder=3 + 1 / (order + 1),
                path_effects=[
                    patheffects.Stroke(linewidth=3, foreground=_contrast(colour), alpha=0.6),
                    patheffects.Normal(),
                ],
            )
        )
        labels.append((f'{classes[label]} {scores[i]:.2f}', (x1, y1, x2, y2), colour))

    for box, label in zip(truth['bboxes'], truth['labels']):
        if classes[int(label)] not in forget:
            continue
        # A little outside: a detection that still sits on the object must stay visible.
        gap = 2.6 * pixels_per_point
        x1, y1, x2, y2 = _inside(
            np.asarray(box, float) + (-gap, -gap, gap, gap), width, height, gap / 2
        )
        # Black dashes on a white line are seen on any background.
        for style, colour, gid in (
            ('-', 'white', None),
            ((0, (4, 2.5)), 'black', FORGOTTEN_BOX),
        ):
            axes.add_patch(
                Rectangle(
                    (x1, y1),
                    x2 - x1,
                    y2 - y1,
                    fill=False,
                    edgecolor=colour,
                    linestyle=style,
                    linewidth=1.6,
                    zorder=5,
                    gid=gid,
                )
            )
        if name_forgotten:
            labels.append((classes[int(label)], (x1, y1, x2, y2), 'white'))

    for index, (text, corners, colour) in enumerate(labels):
        others = [Bbox([c[:2], c[2:]]) for i, (_, c, _) in enumerate(labels) if i != index]
        _place_label(axes, text, corners, colour, taken, others, pixels_per_point)


def _inside(
    box: np.ndarray, width: float, height: float, margin: float = 0.0
) -> tuple[float, float, float, float]:
    """The part of a box that the picture shows."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return (
        min(max(x1, margin), width - margin),
        min(max(y1, margin), height - margin),
        min(max(x2, margin), width - margin),
        min(max(y2, margin), height - margin),
    )


def _place_label(
    axes: Axes,
    text: str,
    corners: tuple[float, float, float, float],
    colour: str,
    taken: list[Bbox],
    others: list[Bbox],
    pixels_per_point: float,
) -> None:
    """Write a label at an edge of its own box, inside the image.

    Where the edges leave a choice it covers as little as possible of the labels that are
    ``taken``, and then of the ``others``, the boxes that are not its own.
    """
    x1, y1, x2, y2 = corners
    pad = 1.6 * pixels_per_point
    label = axes.text(
        0,
        0,
        text,
        fontsize=7,
        color=_contrast(colour),
        zorder=6,
        gid=LABEL,
        bbox={'boxstyle': 'square,pad=0.15', 'facecolor': colour, 'edgecolor': 'none'},
    )
    if colour == 'white':
        label.get_bbox_patch().set(edgecolor='black', linestyle=(0, (3, 2)), linewidth=0.7)
    extent = _patch_extent(label)
    to_data = axes.transData.inverted()
    (left, bottom), (right, top) = to_data.transform(extent.get_points())
    wide, high = right - left, bottom - top
    # What lies between the text's anchor, (0, 0), and the corner of its background.
    shift_x, shift_y = left, top

    limit_x, limit_y = axes.get_xlim()[1], axes.get_ylim()[0]
    wishes = [
        (x, y)
        for y in (y1 - high - pad, y2 + pad, y1 + pad, y2 - high - pad)
        for x in (x1, x2 - wide, (x1 + x2 - wide) / 2)
        # Above or below the box, but not where the image has ended.
        if y >= 0 and y + high <= limit_y
    ] or [(x1, y1)]
    places = [
        (min(max(x, 0.0), max(limit_x - wide, 0.0)), min(max(y, 0.0), max(limit_y - high, 0.0)))
        for x, y in wishes
    ]

    def covered(place: tuple[float, float]) -> tuple[float, float]:
        return tuple(
            sum(
                max(0.0, min(place[0] + wide, box.x1) - max(place[0], box.x0))
                * max(0.0, min(place[1] + high, box.y1) - max(place[1], box.y0))
                for box in boxes
            )
            for boxes in (taken, others)
        )

    # min() takes the first of equals: the wishes stand in order of preference.
    x, y = min(places, key=covered)
    label.set_position((x - shift_x, y - shift_y))
    taken.append(Bbox([(x, y), (x + wide, y + high)]))


def _patch_extent(label: Text) -> Bbox:
    renderer = label.figure.canvas.get_renderer()
    label.update_bbox_position_size(renderer)
    return label.get_bbox_patch().get_window_extent(renderer)


def _contrast(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else 'white'


def _legend_text(forget: Sequence[str], score_thr: float, columns: int) -> str:
    kind = 'class' if len(forget) == 1 else 'classes'
    return textwrap.fill(
        f'Dashed box: ground truth of the forgotten {kind} {", ".join(forget)}. '
        f'Coloured boxes: detections with a score of at least {score_thr:g}.',
        columns,
    )


def _draw_legend(figure: Figure, text: str, height: float) -> None:
    figure_width, figure_height = figure.get_size_inches()
    # The line stands beside the first line of the text.
    y = (height - _MARGIN - _LINE_HEIGHT / 2) / figure_height
    x = np.array([_MARGIN, _MARGIN + 0.35]) / figure_width
    figure.add_artist(Line2D(x, [y, y], color='black', linewidth=1.6, linestyle=(0, (4, 2.5))))
    figure.text(
        (_MARGIN + 0.45) / figure_width,
        (height - _MARGIN) / figure_height,
        text,
        fontsize=8,
        color=_INK,
        va='top',
        linespacing=1.25,
    )
