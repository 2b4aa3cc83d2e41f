"""Which images before_after.png shows."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from mmgslora.datasets import Protocol
from mmgslora.engine import ImageHook, image_hook
from mmgslora.errors import ForgettingError
from mmgslora.families.detector.drawing import DetectionDrawing

CAT, DOG, COW = (0, 0, 10, 10), (20, 20, 40, 40), (50, 50, 60, 60)
# Objects in the images, and what the model finds: (label, box). The cat (0) is asked to go, the
# cow (2) went before.
SHOWN = [
    [(1, DOG)],
    [(0, CAT), (1, DOG)],
    [(0, CAT), (2, COW)],
    [(0, CAT), (1, DOG)],
    [(0, CAT), (1, DOG)],
    [(0, CAT), (1, DOG)],
]
FOUND = [
    [(1, DOG)],
    [(1, DOG)],  # not the cat
    [(0, CAT), (2, COW)],  # nothing that stays is there
    [(0, (0, 0, 10, 4)), (1, DOG)],  # a cat with IoU 0.4
    [(0, CAT), (1, (20, 20, 40, 31))],  # IoU 1 and 0.55
    [(1, CAT), (0, DOG)],  # each under the name of the other
]


def data(images):
    """A data set of nothing but objects."""

    class Data(list):
        def get_data_info(self, index):
            return dict(instances=[dict(bbox=box, bbox_label=x) for x, box in self[index]])

    return Data(images)


def answer(found):
    return dict(
        bboxes=[list(box) for _, box in found],
        labels=[label for label, _ in found],
        scores=[0.9] * len(found),
    )


@pytest.mark.parametrize(
    ('num_images', 'chosen'),
    [
        (1, [4]),
        (2, [1, 4]),  # the only good one, and the first that shows both
        (6, [1, 3, 4, 5]),
    ],
)
def test_images_in_which_both_sides_were_found(num_images, chosen):
    protocol = Protocol(('cat', 'dog', 'cow'), [['cat']], forgotten=['cow'])
    found = DetectionDrawing(0.3).choose(
        data(SHOWN),
        protocol,
        lambda i: answer(FOUND[i]),
        num_images,
    )
    assert list(found) == chosen
    assert all(found[i]['labels'] == [label for label, _ in FOUND[i]] for i in chosen)


def test_where_no_image_shows_both_sides_the_one_to_forget_is_shown():
    images = [[(1, DOG)], [(0, CAT)], [(2, COW)], [(0, CAT)], [(0, CAT), (2, COW)]]
    protocol = Protocol(('cat', 'dog', 'cow'), [['cat']], forgotten=['cow'])
    found = [[], [], [], [(0, CAT)], [(0, CAT)]]
    drawing = DetectionDrawing(0.3)
    for count, expected in ((1, [3]), (2, [3, 4]), (6, [1, 3, 4])):
        chosen = drawing.choose(data(images), protocol, lambda i: answer(found[i]), count)
        assert list(chosen) == expected


@pytest.fixture
def begin(monkeypatch, request, pictures):
    """A function that begins a task of a run over some images, and says what is kept then."""
    images = [[(0, CAT), (1, DOG)]] * 4 + [[(2, COW), (1, DOG)]] * 4
    hub = MessageHub.get_instance(f'image hook {request.node.name}')
    monkeypatch.setattr(image_hook, '_dataset', lambda runner: data(images))
    monkeypatch.setattr(ImageHook, '_drawing', lambda *_: DetectionDrawing(0.3))

    def begin(tasks, found):
        """``found``: what the model at hand finds of an image's objects."""
        protocol = Protocol(('cat', 'dog', 'cow'), tasks)
        monkeypatch.setattr(image_hook, '_look', lambda *args: answer(found(images[args[-1]])))
        loop = SimpleNamespace(protocol=protocol, evaluate_on='test')
        ImageHook(num_images=4).before_forget_task(
            SimpleNamespace(message_hub=hub, train_loop=loop)
        )
        return hub.get_info('before_after')

    with pictures():
        yield begin


def test_a_later_request_has_images_of_its_classes(begin):
    first = begin([['cat']], found=list)
    assert first['indices'] == [0, 1, 2, 3]
    assert begin([['cat']], found=None) == first  # its second task, or a resumed run

    def no_cat(image):
        return [(label, box) for label, box in image if label]

    later = begin([['cat'], ['cow']], found=no_cat)
    assert later['indices'] == [0, 4, 1, 5]
    # Of the images of before what was found then, cats too.
    assert [found['labels'] for found in later['found']] == [[0, 1], [2, 1], [0, 1], [2, 1]]
    assert later['rule'] == f'{first["rule"]}; for cow, asked for later, as found just before that'
    assert begin([['cat'], ['cow']], found=None) == later


def test_the_caption_holds_where_nothing_was_found(begin):
    kept = begin([['cat']], found=lambda image: [])
    assert kept['found'] == [answer([])] * 4
    assert kept['rule'].startswith('The first test images that show a class to forget and one')


def test_images_of_a_checkpoint_that_does_not_say_for_what_stay(begin):
    kept = begin([['cat']], found=list)
    del kept['tasks']
    assert begin([['cat'], ['cow']], found=None)['indices'] == [0, 1, 2, 3]


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ForgettingError, match='num_images is 0; .*score_thr is 30; it can be'):
        ImageHook(num_images=0, score_thr=30)
