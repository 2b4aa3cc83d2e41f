"""However many images go through a pass, each is given what it is given in any other company."""

import pytest
import torch
from torch import nn

from mmgslora.families.together import Together

IMAGES = torch.arange(10.0)


def ran(together, rows, forward=None, kind='a'):
    """What every row gets, and how many images each pass had."""
    passes = []

    def double(rows):
        passes.append(len(rows))
        return dict(stage=(IMAGES[rows] * 2, IMAGES[rows, None].expand(-1, 3)))

    gave = dict(together.run(rows, kind, forward or double))
    return gave, passes


def begun(number, images=8, kinds=('a',), pixels=100):
    together = Together(number)
    together.begin((list(kinds) * images)[:images], pixels)
    return together


def test_every_image_gets_its_own():
    gave, passes = ran(begun(4), [7, 2, 5, 0, 9, 4])
    assert passes == [4, 4, 4]  # the first twice, the second time to try it; the last filled up
    assert list(gave) == [7, 2, 5, 0, 9, 4]
    for row, stages in gave.items():
        doubled, wide = stages['stage']
        assert doubled.tolist() == [2.0 * row] and wide.tolist() == [[row] * 3]
        assert doubled.untyped_storage().nbytes() == 4  # not the whole pass


def test_tried_once_for_a_kind():
    together = begun(4)
    assert ran(together, [1, 2])[1] == [4, 4]
    assert ran(together, [1, 2, 3, 4, 5])[1] == [4, 4]
    for _ in range(2):  # an image alone says nothing of company
        assert ran(together, [1], kind='b')[1] == [4, 4]
    assert ran(together, [1, 2], kind='b')[1] == [4, 4]
    assert ran(together, [1, 2], kind='b')[1] == [4]


@pytest.mark.parametrize(
    'forward',
    [
        lambda rows: dict(stage=(IMAGES[rows] + torch.arange(len(rows)) * 1e-6,)),  # by place
        lambda rows: dict(stage=(IMAGES[rows] - IMAGES[rows].mean(),)),  # by company
        lambda rows: dict(stage=(IMAGES[rows].repeat_interleave(2),)),  # not a row for each
        lambda rows: dict(stage=(IMAGES[rows].mean(0, keepdim=True),)),
    ],
)
def test_one_by_one_where_company_matters(forward):
    sizes = []

    def counted(rows):
        sizes.append(len(rows))
        return forward(rows)

    together = begun(4)
    gave, _ = ran(together, [3, 1, 8], counted)
    assert sizes == [4, 4, 1, 1, 1]
    for row, stages in gave.items():
        assert torch.equal(stages['stage'][0], forward([row])['stage'][0][:1])
    sizes.clear()
    ran(together, [3, 5], counted)
    assert sizes == [1, 1]


def test_a_single_image_is_tried_in_every_place():
    together = begun(4)
    by_place = lambda rows: dict(stage=(IMAGES[rows] + torch.arange(len(rows)),))  # noqa: E731
    gave, _ = ran(together, [6], by_place)
    assert gave[6]['stage'][0].tolist() == [6.0]
    assert ran(together, [1, 2])[1] == [1, 1]


@pytest.mark.parametrize(
    'first',
    [dict(images=3), dict(kinds=('a', 'b')), dict(pixels=800 * 1333)],
)
def test_the_first_batch_decides(first):
    together = begun(4, **first)
    together.begin(['a'] * 8, 100)
    assert ran(together, [1, 2, 3, 4])[1] == [1] * 4
    together = begun(4)
    together.begin(['a', 'b'], 100)  # the last of an epoch may be smaller
    assert ran(together, [1, 2], kind='b')[1] == [4, 4]


def test_a_real_pass_is_the_same_to_the_bit_in_any_company():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(36, 16), nn.LayerNorm(16))
    images = torch.randn(9, 3, 8, 8)

    def forward(rows):
        with torch.no_grad():
            return dict(stage=(net(images[rows]),))

    found = []
    for order in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [8], [5, 8], [2, 8, 0, 7, 1, 3]):
        (one,) = dict(begun(4).run(order, 'a', forward))[8]['stage']
        found.append(one)
    assert all(torch.equal(found[0], one) for one in found)
    assert torch.allclose(found[0], net(images[8:]), atol=1e-5)
