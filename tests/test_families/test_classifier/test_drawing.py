import cv2
import numpy as np
import pytest
from PIL import Image

from mmgslora.datasets import Protocol
from mmgslora.families.classifier.drawing import LabelDrawing
from mmgslora.families.drawing import BeforeAfter
from mmgslora.report.charts import write_image


def draw(folder, classes, forget, count=7):
    path = folder / 'image.png'
    cv2.imwrite(str(path), np.full((8, 8, 3), 255, np.uint8))
    infos = [dict(img_path=str(path), gt_label=min(i, 1)) for i in range(count)]
    before, after = dict(label=0, score=0.9), dict(label=len(classes) - 1, score=0.4)
    drawing = LabelDrawing(0.3)
    target = folder / 'new' / 'drawn.png'
    write_image(
        target,
        lambda: drawing.figure(
            BeforeAfter(infos, [before] * count, [after] * count, classes, forget)
        ),
    )
    return cv2.imread(str(target))


def test_red_title_for_what_was_forgotten(tmp_path):
    """The only red pixels outside the images are the titles of forgotten classes."""

    def red_pixels(forget):
        blue, green, red = np.moveaxis(draw(tmp_path, ('cat', 'dog'), forget).astype(int), -1, 0)
        return (red - (blue + green) / 2 > 60).sum()

    assert red_pixels([]) == 0
    one = red_pixels(['cat'])
    assert one > 20
    assert red_pixels(['dog']) > 4 * one


@pytest.mark.parametrize('name', ['$', '$\\frac{1}$ _x', 'a $ b $ c', '\\$', '<b>', '犬'])
def test_every_class_name_can_be_drawn(tmp_path, name):
    assert draw(tmp_path, [name, name], [name], count=2) is not None


def test_a_turned_image_is_drawn_as_the_model_sees_it(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    path = str(tmp_path / 'turned.png')
    Image.fromarray(np.zeros((8, 16), np.uint8)).save(path, exif=turned)
    said = dict(label=0, score=0.5)
    shown = BeforeAfter([dict(img_path=path, gt_label=0)], [said], [said], ('cat',), [])
    (axes,) = LabelDrawing(0.3).figure(shown).axes
    assert axes.images[0].get_array().shape == (16, 8, 3)


def test_the_first_image_of_each_class_in_turn():
    labels = [2, 0, 0, 3, 1]

    class Data(list):
        def get_data_info(self, index):
            return dict(gt_label=self[index])

    dataset = Data(labels)
    protocol = Protocol(('a', 'b', 'c', 'd'), [['b'], ['a']])
    looked = []
    chosen = LabelDrawing(0.3).choose(dataset, protocol, lambda i: looked.append(i) or i, 3)
    # To forget b, stays c, to forget a; stays d comes too late.
    assert list(chosen) == looked == [4, 0, 1]
    # What went before is no class that stays.
    protocol = Protocol(('a', 'b', 'c', 'd'), [['b']], forgotten=['c'])
    assert list(LabelDrawing(0.3).choose(dataset, protocol, lambda i: i, 6)) == [4, 1, 3]
