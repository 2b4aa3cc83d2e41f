import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from mmgslora.report import draw_before_after, draw_labels
from mmgslora.report.format import for_matplotlib


def test_red_title_for_what_was_forgotten(tmp_path):
    """The only red pixels outside the pictures are the title of the forgotten class."""

    def red_pixels(forget):
        draw_labels(
            images=[np.full((8, 8, 3), 255, np.uint8)] * 7,  # a second row
            truth=[0, 1, 1, 1, 1, 1, 1],
            before=[dict(label=0, score=0.9)] * 7,
            after=[dict(label=1, score=0.4)] * 7,
            classes=('cat', 'dog'),
            forget=forget,
            path=tmp_path / 'new' / 'picture.png',
        )
        picture = cv2.imread(str(tmp_path / 'new' / 'picture.png')).astype(int)
        blue, green, red = picture[..., 0], picture[..., 1], picture[..., 2]
        return (red - (blue + green) / 2 > 60).sum()

    assert red_pixels([]) == 0
    one = red_pixels(['cat'])
    assert one > 20
    assert red_pixels(['dog']) > 4 * one


@pytest.mark.parametrize('name', ['$', '$\\frac{1}$ _x', 'a $ b $ c', '\\$'])
def test_a_dollar_in_a_class_name_is_a_dollar(tmp_path, name):
    box = dict(bboxes=np.array([[1, 1, 6, 6]]), scores=np.array([0.9]), labels=np.array([0]))
    image = np.zeros((8, 8, 3), np.uint8)
    prediction = dict(label=0, score=0.5)
    draw_labels([image], [0], [prediction], [prediction], [name], [name], tmp_path / 'labels.png')
    draw_before_after([image], [box], [box], [box], [name], [name], tmp_path / 'boxes.png')
    assert (tmp_path / 'labels.png').stat().st_size and (tmp_path / 'boxes.png').stat().st_size
    text = Figure().text(0, 0, for_matplotlib(name))
    assert text._preprocess_math(text.get_text()) == (name, False)
