"""Which images before_after.png shows."""

from types import SimpleNamespace

import pytest

from mmgslora.datasets import Protocol
from mmgslora.engine import PictureHook

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
def test_images_in_which_both_sides_were_found(monkeypatch, num_images, chosen):
    infos = [
        dict(instances=[dict(bbox=box, bbox_label=label) for label, box in image])
        for image in SHOWN
    ]

    class Data(list):
        def get_data_info(self, index):
            return self[index]

    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=Data(infos)))
    protocol = Protocol(('cat', 'dog', 'cow'), [['cat']], forgotten=['cow'])
    runner = SimpleNamespace(
        train_loop=SimpleNamespace(protocol=protocol, evaluation_loop=loop), val_loop=loop
    )
    monkeypatch.setattr(
        PictureHook,
        '_detect',
        lambda self, runner, i: dict(
            bboxes=[list(box) for _, box in FOUND[i]],
            labels=[label for label, _ in FOUND[i]],
            scores=[0.9] * len(FOUND[i]),
        ),
    )
    found = PictureHook(num_images)._choose(runner)
    assert list(found) == chosen
    assert all(found[i]['labels'] == [label for label, _ in FOUND[i]] for i in chosen)
