import cv2
import numpy as np

from mmgslora.report import draw_labels


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
