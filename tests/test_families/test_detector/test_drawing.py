import cv2
import numpy as np
import pytest

from mmgslora.families.detector.drawing import DetectionDrawing, _drawn, palette
from mmgslora.families.drawing import BeforeAfter
from mmgslora.report.charts import write_image

CLASSES = ['circle', 'square', 'fire hydrant', 'star']
DRAWING = DetectionDrawing(0.3)


def found(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    return dict(
        bboxes=[list(row[:4]) for row in rows],
        scores=[row[4] for row in rows],
        labels=[row[5] for row in rows],
    )


def scene(folder, height, width, count=1):
    """One forgotten circle in the middle, a square in the corner, a hydrant over two edges."""
    h, w = height, width
    circle, square = (0.4 * w, 0.4 * h, 0.6 * w, 0.6 * h), (0, 0, 0.2 * w, 0.2 * h)
    hydrant = (0.85 * w, 0.85 * h, 1.1 * w, 1.1 * h)
    before = found((*circle, 0.95, 0), (*square, 0.9, 1), (*hydrant, 0.8, 2))
    after = found((*square, 0.88, 1), (*hydrant, 0.7, 2))
    path = folder / f'{h}x{w}.png'
    cv2.imwrite(str(path), np.full((h, w, 3), 120, np.uint8))
    truth = [dict(bbox=b, bbox_label=i) for i, b in enumerate((circle, square, hydrant))]
    info = dict(img_path=str(path), instances=truth)
    return [info] * count, [before] * count, [after] * count


def where_they_differ(one, other):
    """The smallest box around all pixels that differ, as x1, y1, x2, y2 in parts of the image."""
    rows, columns = np.nonzero((one != other).any(-1))
    height, width = one.shape[:2]
    box = columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height
    return np.array(box)


def test_exactly_the_forgotten_truths_are_dashed_and_only_after_has_their_names(tmp_path):
    (info,), (before,), (after,) = scene(tmp_path, 128, 128)
    plain, dashed, named = (
        _drawn(info, after, CLASSES, forget, name)
        for forget, name in (([], True), (['circle'], False), (['circle'], True))
    )
    np.testing.assert_allclose(where_they_differ(plain, dashed), [0.4, 0.4, 0.6, 0.6], atol=0.02)
    x1, y1, x2, y2 = where_they_differ(dashed, named)
    assert x1 > 0.38 and x2 < 0.6 and 0.3 < y1 < y2 < 0.41  # a name above the box
    # Black dashes on a white line: both colours, and neither without the dashes.
    for colour in (0, 255):
        assert (dashed == colour).all(-1).sum() > 100 > (plain == colour).all(-1).sum() - 100
    assert (_drawn(info, before, CLASSES, ['star'], True) == _drawn(
        info, before, CLASSES, [], True
    )).all()  # fmt: skip


def test_boxes_have_the_colour_of_their_class(tmp_path):
    (info,), _, _ = scene(tmp_path, 128, 128)
    empty = _drawn(info, found(), CLASSES, [], False)
    assert (empty == 120).all()
    for label, colour in enumerate(palette(len(CLASSES))):
        shown = _drawn(info, found((40, 40, 90, 90, 0.5, label)), CLASSES, [], False)
        np.testing.assert_allclose(
            where_they_differ(shown, empty)[2:], [90 / 128, 90 / 128], atol=0.02
        )
        assert (np.abs(shown[220:230, 136:140].astype(int) - colour).sum(-1) < 12).any()
    assert len(set(palette(30))) == 30


def test_labels_of_boxes_on_one_spot_stand_below_each_other(tmp_path):
    (info,), _, _ = scene(tmp_path, 128, 128)
    rows = [(40, 40, 90, 90, 0.5, label) for label in range(4)]
    heights = []
    for count in range(1, 5):
        shown = _drawn(info, found(*rows[:count]), CLASSES, [], False)
        before = _drawn(info, found(*rows[: count - 1]), CLASSES, [], False)
        tags = (shown != before).any(-1)[:250, 150:200]  # between the left and right edges
        heights.append(np.nonzero(tags.any(1))[0].max())
    assert (np.diff(heights) > 12).all()


@pytest.mark.parametrize(
    ('height', 'width', 'count'), [(128, 128, 1), (128, 128, 5), (800, 1333, 2), (333, 20, 2)]
)
def test_the_file_is_an_image_of_sensible_size(tmp_path, height, width, count):
    infos, before, after = scene(tmp_path, height, width, count)
    path = tmp_path / 'drawn' / 'image.png'
    figure = DRAWING.figure(BeforeAfter(infos, before, after, CLASSES, ['circle']))
    write_image(path, lambda: figure)
    shown = cv2.imread(str(path))
    assert 900 < shown.shape[1] < 2400 and 300 < shown.shape[0] < 2400
    assert [p.name for p in path.parent.iterdir()] == ['image.png']
    texts = [text.get_text() for text in figure.texts]
    assert texts[:2] == ['before', 'after']
    legend = texts[-1].replace('\n', ' ')
    assert 'ground truth of the forgotten class circle.' in legend and 'at least 0.3' in legend
    # Drawn in the size of the page: not a pixel is drawn twice or left out.
    assert len(figure.images) == 2 * count
    for image in figure.images:
        drawn = image.get_array()
        assert drawn.shape[1] / drawn.shape[0] == pytest.approx(width / height, rel=0.05)


def test_an_image_without_detections_or_objects_is_drawn(tmp_path):
    (info,), _, _ = scene(tmp_path, 64, 64)
    info = dict(info, instances=[])
    figure = DRAWING.figure(BeforeAfter([info], [found()], [found()], CLASSES, ['circle']))
    assert all((image.get_array() == 120).all() for image in figure.images)


@pytest.mark.parametrize('name', ['$', '$\\frac{1}$ _x', 'a $ b $ c', '\\$', '<b>', '犬'])
def test_every_class_name_can_be_drawn(tmp_path, name):
    infos, before, after = scene(tmp_path, 64, 64)
    path = tmp_path / 'drawn.png'
    names = [name, *CLASSES[1:]]
    write_image(path, lambda: DRAWING.figure(BeforeAfter(infos, before, after, names, [name])))
    assert cv2.imread(str(path)) is not None
