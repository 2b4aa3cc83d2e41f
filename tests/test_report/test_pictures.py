import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from mmgslora.errors import ForgettingError
from mmgslora.report import draw_before_after
from mmgslora.report.pictures import (
    FORGOTTEN_BOX,
    LABEL,
    before_after_figure,
    class_colour,
)

CLASSES = ['circle', 'square', 'fire hydrant', 'star']


def boxes(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    table = np.array(rows, float).reshape(-1, 6)
    return {'bboxes': table[:, :4], 'scores': table[:, 4], 'labels': table[:, 5].astype(int)}


def scene(height, width, count=1):
    """One forgotten circle in the middle, a square in the corner, a hydrant over two edges."""
    h, w = height, width
    circle, square = (0.4 * w, 0.4 * h, 0.6 * w, 0.6 * h), (0, 0, 0.2 * w, 0.2 * h)
    hydrant = (0.85 * w, 0.85 * h, 1.1 * w, 1.1 * h)
    before = boxes((*circle, 0.95, 0), (*square, 0.9, 1), (*hydrant, 0.8, 2), (*square, 0.1, 3))
    after = boxes((*square, 0.88, 1), (*hydrant, 0.7, 2), (*circle, 0.29, 0))
    truth = boxes((*circle, 1, 0), (*square, 1, 1), (*hydrant, 1, 2))
    image = np.full((h, w, 3), 120, np.uint8)
    return [image] * count, [before] * count, [after] * count, [truth] * count


def panels(figure, side):
    return [axes for axes in figure.axes if axes.get_gid() == side]


def dashed(axes):
    return [patch for patch in axes.patches if patch.get_gid() == FORGOTTEN_BOX]


def labels(axes):
    return [text for text in axes.texts if text.get_gid() == LABEL]


def test_exactly_the_forgotten_truths_are_dashed_and_only_after_has_their_names():
    figure = before_after_figure(*scene(128, 128), CLASSES, ['circle'])
    for side in ('before', 'after'):
        (axes,) = panels(figure, side)
        (patch,) = dashed(axes)
        assert patch.get_linestyle() not in ('-', 'solid')
        box = np.array([patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()])
        np.testing.assert_allclose(box, [51.2, 51.2, 25.6, 25.6], atol=4)
    (before,), (after,) = panels(figure, 'before'), panels(figure, 'after')
    assert [text.get_text() for text in labels(before)] == [
        'circle 0.95',
        'square 0.90',
        'fire hydrant 0.80',
    ]
    assert [text.get_text() for text in labels(after)] == [
        'square 0.88',
        'fire hydrant 0.70',
        'circle',
    ]


def test_nothing_is_dashed_where_nothing_was_forgotten():
    figure = before_after_figure(*scene(128, 128), CLASSES, ['star'])
    assert not any(dashed(axes) for axes in figure.axes)


def test_titles_and_legend():
    figure = before_after_figure(*scene(128, 128, count=2), CLASSES, ['circle', 'square'])
    texts = [text.get_text() for text in figure.texts]
    assert texts[:2] == ['before', 'after']
    legend = texts[-1].replace('\n', ' ')
    assert 'Dashed box: ground truth of the forgotten classes circle, square.' in legend
    assert 'at least 0.3' in legend


def test_one_colour_per_class():
    figure = before_after_figure(*scene(128, 128, count=2), CLASSES, ['circle'])
    seen = 0
    for text in (text for axes in figure.axes for text in labels(axes)):
        name, _, score = text.get_text().rpartition(' ')
        if name:
            seen += 1
            assert float(score) >= 0.3
            wanted = class_colour(CLASSES.index(name))
            assert to_hex(text.get_bbox_patch().get_facecolor()) == wanted
    assert seen == 2 * (3 + 2)
    assert len({class_colour(label) for label in range(30)}) == 30


@pytest.mark.parametrize(('height', 'width'), [(128, 128), (800, 1333), (1333, 800), (32, 96)])
def test_labels_stay_inside_the_picture_and_off_each_other(height, width):
    figure = before_after_figure(*scene(height, width), CLASSES, ['circle'])
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        frame = axes.get_window_extent(renderer)
        extents = []
        for text in labels(axes):
            text.update_bbox_position_size(renderer)
            extents.append(text.get_bbox_patch().get_window_extent(renderer))
        for box in extents:
            assert box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1
            assert box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1
        if min(height, width) >= 128:
            assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[i + 1 :])


@pytest.mark.parametrize(
    ('height', 'width', 'count'), [(128, 128, 1), (128, 128, 5), (800, 1333, 2)]
)
def test_the_file_is_a_picture_of_sensible_size(tmp_path, height, width, count):
    path = draw_before_after(
        *scene(height, width, count), CLASSES, ['circle'], tmp_path / 'pictures.png'
    )
    shown = cv2.imread(str(path))
    assert 900 < shown.shape[1] < 2400 and 500 < shown.shape[0] < 2400
    assert list(tmp_path.iterdir()) == [path]


def test_images_of_different_sizes_keep_their_shape():
    sizes = [(480, 640), (640, 427), (128, 128), (800, 1333)]
    parts = [scene(*size) for size in sizes]
    joined = [[part[i][0] for part in parts] for i in range(4)]
    figure = before_after_figure(*joined, CLASSES, ['circle'])
    shown = panels(figure, 'after')
    assert len(shown) == 4
    for axes, (height, width) in zip(shown, sizes):
        box = axes.get_window_extent()
        assert box.width / box.height == pytest.approx(width / height, rel=1e-3)


def test_an_image_without_detections_or_objects_is_drawn():
    image = [np.zeros((64, 64, 3), np.uint8)]
    figure = before_after_figure(image, [boxes()], [boxes()], [boxes()], CLASSES, ['circle'])
    assert len(figure.axes) == 2 and not any(labels(axes) for axes in figure.axes)


def test_lists_that_do_not_belong_together_are_refused():
    images, before, after, truth = scene(64, 64)
    with pytest.raises(ForgettingError, match='1 images, but 2 detections before'):
        before_after_figure(images, before * 2, after, truth, CLASSES, ['circle'])
    with pytest.raises(ForgettingError, match="'dog' is unknown"):
        before_after_figure(images, before, after, truth, CLASSES, ['dog'])
    with pytest.raises(ForgettingError, match='no images'):
        before_after_figure([], [], [], [], CLASSES, ['circle'])


def test_every_label_is_at_its_own_box():
    """In a crowd too: a label beside its box would stand on a neighbour."""
    rng = np.random.default_rng(0)
    names = [f'class {i}' for i in range(14)]
    corners = rng.integers(0, 90, (len(names), 2))
    rows = [
        (x, y, x + w, y + h, 0.9, i)
        for i, ((x, y), (w, h)) in enumerate(zip(corners, rng.integers(12, 38, (len(names), 2))))
    ]
    image = np.full((128, 128, 3), 120, np.uint8)
    figure = before_after_figure([image], [boxes(*rows)], [boxes()], [boxes()], names, [])
    (axes,) = panels(figure, 'before')
    renderer = figure.canvas.get_renderer()
    assert len(labels(axes)) == len(names)
    for text in labels(axes):
        x1, y1, x2, y2 = rows[names.index(text.get_text().rpartition(' ')[0])][:4]
        text.update_bbox_position_size(renderer)
        extent = text.get_bbox_patch().get_window_extent(renderer)
        (left, bottom), (right, top) = axes.transData.inverted().transform(extent.get_points())
        assert left <= x2 and right >= x1 and top <= y2 + 2 and bottom >= y1 - 2
