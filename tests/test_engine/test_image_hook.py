"""Which images before_after.png shows."""

import pytest

from mmgslora.datasets import Protocol
from mmgslora.engine import ImageHook
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


@pytest.mark.parametrize(
    ('num_images', 'chosen'),
    [
        (1, [4]),
        (2, [1, 4]),  # the only good one, and the first that shows both
        (6, [1, 3, 4, 5]),
    ],
)
def test_images_in_which_both_sides_were_found(num_images, chosen):
    infos = [
        dict(instances=[dict(bbox=box, bbox_label=label) for label, box in image])
        for image in SHOWN
    ]

    class Data(list):
        def get_data_info(self, index):
            return self[index]

    protocol = Protocol(('cat', 'dog', 'cow'), [['cat']], forgotten=['cow'])
    found = DetectionDrawing(0.3).choose(
        Data(infos),
        protocol,
        lambda i: dict(
            bboxes=[list(box) for _, box in FOUND[i]],
            labels=[label for label, _ in FOUND[i]],
            scores=[0.9] * len(FOUND[i]),
        ),
        num_images,
    )
    assert list(found) == chosen
    assert all(found[i]['labels'] == [label for label, _ in FOUND[i]] for i in chosen)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ForgettingError, match='num_images is 0; .*score_thr is 30; it can be'):
        ImageHook(num_images=0, score_thr=30)
