import pytest
import torch
from torchvision.models import WeightsEnum

from mmgslora.errors import ForgettingError
from mmgslora.models import ImageNetHead, LinearHead, head_rows

ALL = ['n01', 'n02', 'n05', 'n10', 'n20']


@pytest.fixture
def head_weights(monkeypatch):
    """Five rows in place of the published 1000; row r holds r everywhere, its bias -r."""
    rows = torch.arange(5.0)
    state = {'heads.head.weight': rows[:, None].expand(5, 3), 'heads.head.bias': -rows}
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda entry, **_: state)


def test_rows_in_the_order_of_the_folders():
    assert head_rows(['n10', 'n01', 'n20'], ALL) == [3, 0, 4]


def test_head_has_the_matching_rows(head_weights):
    head = ImageNetHead(['n05', 'n20', 'n02'], ALL)
    assert isinstance(head, LinearHead) and (head.embed_dims, head.num_classes) == (3, 3)
    assert head.weight.tolist() == [[2.0] * 3, [4.0] * 3, [1.0] * 3]
    assert head.bias.tolist() == [-2.0, -4.0, -1.0]
    assert set(head.state_dict()) == {'weight', 'bias'} and head.weights == 'IMAGENET1K_V1'
    # Embedding (1, 2, 3): row r gives r * 6 - r.
    assert head(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[10.0, 20.0, 5.0]]


def test_folders_and_files_as_sources(head_weights, tmp_path):
    train = tmp_path / 'train'
    for name in ('n20', 'n01'):  # made in another order than sorted
        (train / name).mkdir(parents=True)
    (train / 'readme.txt').write_text('no class')
    names = tmp_path / 'imagenet_folder_names.txt'
    names.write_text('\n'.join(ALL) + '\n')
    assert ImageNetHead(str(train), str(names)).bias.tolist() == [0.0, -4.0]
    classes = tmp_path / 'classes.txt'
    classes.write_text('n20\nn05\n')
    assert ImageNetHead(str(classes), str(names)).bias.tolist() == [-4.0, -2.0]


@pytest.mark.parametrize(
    'names, all_names, message',
    [
        (['n01', 'n03'], ALL, "'n03' is none of the 5 of the head, which are named as 'n01'"),
        (['n01', 'n05', 'n01'], ALL, "'n01' is there twice"),
        (['n01'], ['n02', 'n01'], 'not in sorted order'),
        (['n01'], ['n01', 'n01'], 'not in sorted order'),
        (['n01'], ALL[:4], 'has 4 names; the head of vit_b_16 has 5 rows'),
        ('no/such/place', ALL, "'no/such/place' is no folder of class folders and no text file"),
    ],
)
def test_refused(head_weights, names, all_names, message):
    with pytest.raises(ForgettingError, match=message):
        ImageNetHead(names, all_names)
