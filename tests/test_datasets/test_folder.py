from functools import partial

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from mmgslora.datasets import folder
from mmgslora.datasets.folder import build_transforms, check_same_classes
from mmgslora.datasets.protocol import Protocol, category_ids_of
from mmgslora.errors import ForgettingError

# MMEngine collects garbage whenever it packs a listing, which takes a second.
FolderDataset = partial(folder.FolderDataset, serialize_data=False)
TENSOR = [dict(type='ToImage'), dict(type='ToDtype', dtype='float32', scale=True)]


@pytest.fixture
def root(tmp_path):
    """train/ with ant (3), bee (2) and cow (1); test/ with one image each."""
    for part, counts in (
        ('train', dict(bee=2, ant=3, cow=1)),
        ('test', dict(ant=1, bee=1, cow=1)),
    ):
        for name, count in counts.items():
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((4, 6, 3), (10 * i, 51, 255), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f'{i}.png')
    return tmp_path


def test_listing_and_items(root):
    dataset = DATASETS.build(
        dict(type='FolderDataset', data_root=str(root), folder='train', transforms=TENSOR)
    )
    assert dataset.metainfo['classes'] == ('ant', 'bee', 'cow')
    assert [dataset.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 0, 1, 1, 2]
    assert [dataset.get_data_info(i)['img_id'] for i in range(6)] == list(range(6))
    item = dataset[2]
    assert type(item['inputs']) is torch.Tensor and item['inputs'].dtype == torch.float32
    expected = torch.tensor([20 / 255, 51 / 255, 1.0])[:, None, None].expand(3, 4, 6)
    torch.testing.assert_close(item['inputs'], expected)
    sample = item['data_samples']
    assert sample.img_path == str(root / 'train/ant/2.png') and sample.img_id == 2
    assert sample.gt_label.dtype == torch.int64 and sample.gt_label.shape == ()
    assert dataset[3]['data_samples'].gt_label == 1


def test_some_classes_in_an_order_of_their_own(root):
    dataset = FolderDataset(str(root), 'train', classes=['cow', 'ant'], classes_from='test')
    assert dataset.metainfo['classes'] == ('cow', 'ant')
    found = [(x['gt_label'], x['img_id']) for x in map(dataset.get_data_info, range(len(dataset)))]
    assert found == [(1, 0), (1, 1), (1, 2), (0, 5)]
    with pytest.raises(ForgettingError, match="classes names 'elk', which has no folder in .*ant,"):
        FolderDataset(str(root), 'train', classes=['elk'])
    with pytest.raises(ForgettingError, match="classes names 'ant' 2 times"):
        FolderDataset(str(root), 'train', classes=['ant', 'ant', 'cow'])
    metainfo = dict(classes=('cow', 'ant'))
    assert FolderDataset(str(root), 'train', metainfo=metainfo).metainfo['classes'] == (
        'cow',
        'ant',
    )
    half = FolderDataset(str(root), 'train', classes=['bee', 'ant'], split=dict(train=1, val=1))
    assert {half.get_data_info(i)['gt_label'] for i in range(len(half))} == {0, 1}


@pytest.mark.parametrize('name', ['ann_file', 'data_prefix', 'pipeline', 'filter_cfg'])
def test_settings_of_other_data_sets_are_not_read(root, name):
    """A list of some images would count for nothing, and all of the folder would be taken."""
    with pytest.raises(ForgettingError, match=f"^{name} is 'x', which is not read; the images of"):
        FolderDataset(str(root), 'train', **{name: 'x'})


def test_files_that_are_left_out_are_counted(root, monkeypatch):
    """Four; a hidden one and what lies in folders that do not count are not named."""
    for name in ('ant/a.txt', 'ant/b.avif', 'bee/more/c.avif', 'bee/d', 'bee/.e', 'cow/f.txt'):
        (root / 'train' / name).parent.mkdir(exist_ok=True)
        (root / 'train' / name).write_text('no image')
    listed = ImageFolder(str(root / 'train')).samples
    (root / 'train/empty').mkdir()
    said = []
    monkeypatch.setattr(folder, 'print_log', lambda text, logger: said.append(text))
    dataset = FolderDataset(str(root), 'train', classes=['bee', 'ant'])
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [x['img_path'] for x in infos] == [path for path, label in listed if label in (0, 1)]
    kinds = '2 with .avif, 1 with .txt, 1 with none'
    where = repr(str(root / 'train'))
    assert said == [
        f'Left out of {where}: 4 file(s) that are no images by their extension: {kinds}.'
    ]


def test_grey_palette_and_transparent_images_become_rgb(root):
    grey = Image.fromarray(np.full((4, 6), 51, np.uint8))
    for number, mode in enumerate(('L', 'P', 'RGBA', 'LA')):
        grey.convert(mode).save(root / f'train/cow/{number}.png')
    dataset = FolderDataset(str(root), 'train', TENSOR)
    for i in range(5, 9):
        torch.testing.assert_close(dataset[i]['inputs'], torch.full((3, 4, 6), 0.2))


@pytest.mark.parametrize(('most', 'suffix'), [(60000, 'png'), (60000, 'tif'), (256, 'png')])
def test_grey_of_more_than_eight_bits_would_become_white(root, most, suffix):
    path = root / f'train/ant/deep.{suffix}'
    Image.fromarray(np.array([[7, most]], np.uint16)).save(path)
    words = f"deep.{suffix}' cannot be decoded: its values are from 7 to {most}, and an image"
    with pytest.raises(ForgettingError, match=words):
        FolderDataset(str(root), 'train', transforms=TENSOR)


@pytest.mark.parametrize(('values', 'said'), [([0, 1], 'from 0 to 1'), ([np.nan, 9], 'from nan')])
def test_floats_would_become_black(root, values, said):
    """0.5 of 1 is no grey of 255."""
    path = root / 'train/ant/float.tif'
    Image.fromarray(np.array([values], np.float32)).save(path)
    with pytest.raises(
        ForgettingError, match=f"float.tif' cannot be decoded: its values are {said}"
    ):
        FolderDataset(str(root), 'train', transforms=TENSOR)
    Image.fromarray(np.array([[0, 51.0, 255]], np.float32)).save(path)
    item = FolderDataset(str(root), 'train', transforms=TENSOR)[3]
    torch.testing.assert_close(item['inputs'][0], torch.tensor([[0, 0.2, 1]]))


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_images_are_turned_as_exif_says(root, suffix):
    """6: what the file has as its left column is the upper row, from right to left."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    path = root / f'train/cow/turned.{suffix}'
    Image.fromarray(pixels).save(path, exif=turned)
    dataset = FolderDataset(str(root), 'train', TENSOR)
    inputs = dataset[len(dataset) - 1]['inputs']
    assert inputs.shape == (3, 16, 8)
    assert (inputs[:, :8] < 0.1).all() and (inputs[:, 8:] > 0.9).all()


def test_transforms_are_torchvisions():
    built = build_transforms(
        [
            dict(type='Resize', size=(8, 8), interpolation='bicubic'),
            dict(type='RandomApply', p=1.0, transforms=[dict(type='RandomHorizontalFlip', p=1.0)]),
            *TENSOR,
            dict(type='Normalize', mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]),
        ]
    )
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8))
    image = v2.functional.to_image(pixels)
    image = v2.functional.pil_to_tensor(
        v2.functional.resize(pixels, (8, 8), InterpolationMode.BICUBIC)
    )
    flipped = image.flip(-1).double() / 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = (flipped - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(built(pixels).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ('transforms', 'words'),
    [
        ([dict(type='Resise', size=4)], "'Resise' is no transform .* mean 'Resize'"),
        ([dict(size=4)], 'None is no transform'),
        ([dict(type='Resize', sise=4)], 'Transform .*sise.* cannot be built'),
        ([dict(type='ToDtype', dtype='float31')], 'Transform .*float31.* cannot be built'),
        ([dict(type='Resize', size=4, interpolation='best')], 'Transform .*best.* cannot be built'),
    ],
)
def test_bad_transforms_are_named(root, transforms, words):
    with pytest.raises(ForgettingError, match=words):
        FolderDataset(str(root), 'train', transforms)


@pytest.mark.parametrize(
    ('transforms', 'words'),
    [
        ([], 'The transforms give Image instead'),
        ([dict(type='ToImage')], r'torch.uint8 \(3, 4, 6\) instead'),
        ([*TENSOR, dict(type='Grayscale')], r'torch.float32 \(1, 4, 6\) instead'),
    ],
)
def test_transforms_must_end_in_an_image(root, transforms, words):
    dataset = FolderDataset(str(root), 'train', transforms)
    with pytest.raises(ForgettingError, match=words):
        dataset[0]


def test_folders_that_cannot_serve(root):
    with pytest.raises(ForgettingError, match='nowhere.* does not exist'):
        FolderDataset(str(root), 'nowhere')
    with pytest.raises(ForgettingError, match='ant.* has no class folders'):
        FolderDataset(str(root), 'train/ant')
    (root / 'train/dog').mkdir()
    (root / 'train/dog/notes.txt').write_text('no image')
    with pytest.raises(ForgettingError, match="train': Found no valid file for the classes dog"):
        FolderDataset(str(root), 'train')


def _broken(root, kind):
    path = root / 'train/bee/1.png'
    whole = path.read_bytes()
    if kind == 'text':
        path.write_text('not an image')
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'cut png':
        path.write_bytes(whole[: len(whole) - 30])
    elif kind == 'link':
        path.unlink()
        path.symlink_to('gone.png')
    else:
        path.unlink()
        path = path.with_suffix('.jpg')
        noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    return path


@pytest.mark.parametrize('kind', ['text', 'empty', 'cut png', 'cut jpg', 'link'])
def test_broken_image_is_named_before_training(root, kind):
    path = _broken(root, kind)
    with pytest.raises(ForgettingError, match=f'{path.name}. cannot be decoded'):
        FolderDataset(str(root), 'train', TENSOR)
    dataset = FolderDataset(str(root), 'train', TENSOR, verify='none')
    with pytest.raises(ForgettingError, match=f'{path.name}. cannot be decoded'):
        dataset[4]


def test_all_broken_images_are_counted(root):
    for path in (root / 'train').glob('*/*.png'):
        path.write_text('no')
    with pytest.raises(ForgettingError, match='0.png.* cannot be decoded.*with 5 more'):
        FolderDataset(str(root), 'train', TENSOR)
    with pytest.raises(ForgettingError, match="verify is 'some'"):
        FolderDataset(str(root), 'train', verify='some')


def test_processes_share_the_check(root, monkeypatch):
    """Six files, two processes: the broken one, number 4, is found by the first of them only."""
    _broken(root, 'text')
    monkeypatch.setattr('mmgslora.datasets.folder.get_dist_info', lambda: (1, 2))
    assert len(FolderDataset(str(root), 'train', TENSOR)) == 6
    monkeypatch.setattr('mmgslora.datasets.folder.get_dist_info', lambda: (0, 2))
    with pytest.raises(ForgettingError, match='1.png'):
        FolderDataset(str(root), 'train', TENSOR)


def test_class_folders_of_training_and_test(root):
    FolderDataset(str(root), 'test', TENSOR, classes_from='train')
    (root / 'test/cow').rename(root / 'test/yak')
    with pytest.raises(ForgettingError, match=r"test has 1 class\(es\) that .*train lacks.*'yak'"):
        FolderDataset(str(root), 'test', TENSOR, classes_from='train')
    (root / 'test/yak').rename(root / 'gone')
    with pytest.raises(ForgettingError, match=r"train has 1 class\(es\) that .*test lacks.*'cow'"):
        FolderDataset(str(root), 'test', TENSOR, classes_from='train')
    check_same_classes(['a', 'b'], ('a', 'b'), 'here', 'there')
    with pytest.raises(ForgettingError, match="Class 0 is 'a' in here and 'b' in there"):
        check_same_classes(['a', 'b'], ['b', 'a'], 'here', 'there')


def _ids(root, part, split, seed=0):
    dataset = FolderDataset(str(root), 'train', TENSOR, split=split, part=part, seed=seed)
    return {
        name: [
            info['img_id']
            for info in map(dataset.get_data_info, range(len(dataset)))
            if info['gt_label'] == label
        ]
        for label, name in enumerate(dataset.metainfo['classes'])
    }


def test_split_cuts_every_class(root):
    """20 ants in shares 5 : 2 : 3 are 10 : 4 : 6; 3 bees in shares 98 : 1 : 1 are 1 : 1 : 1."""
    for i in range(3, 20):
        Image.new('RGB', (6, 4)).save(root / f'train/ant/{i}.png')
    for i in range(2, 3):
        Image.new('RGB', (6, 4)).save(root / f'train/bee/{i}.png')
    for i in range(1, 4):
        Image.new('RGB', (6, 4)).save(root / f'train/cow/{i}.png')
    split = dict(train=5, val=2, test=3)
    parts = {part: _ids(root, part, split) for part in split}
    assert {part: len(ids['ant']) for part, ids in parts.items()} == dict(train=10, val=4, test=6)
    for name, known in dict(ant=range(20), bee=range(20, 23), cow=range(23, 27)).items():
        assert sorted(i for ids in parts.values() for i in ids[name]) == list(known)
    assert parts == {part: _ids(root, part, split) for part in split}
    assert parts['train']['ant'] != _ids(root, 'train', split, seed=1)['ant']
    extreme = dict(train=98, val=1, test=1)
    assert {part: len(_ids(root, part, extreme)['bee']) for part in extreme} == dict(
        train=1, val=1, test=1
    )
    late = dict(train=1, val=1, test=98)
    assert {part: len(_ids(root, part, late)['cow']) for part in late} == dict(
        train=1, val=1, test=2
    )


def test_splits_that_cannot_be(root):
    with pytest.raises(ForgettingError, match=r"Class 'cow' .* has 1 image\(s\), too few"):
        _ids(root, 'train', dict(train=0.7, val=0.3))
    for part, split in (('val', dict(train=1, test=1)), ('train', dict(train=1, val=0))):
        with pytest.raises(ForgettingError, match=f"Part '{part}' of the split"):
            _ids(root, part, split)


def test_protocol_may_number_the_class_folders(root):
    dataset = FolderDataset(str(root), 'train', TENSOR)
    ids = category_ids_of(dataset)
    assert ids == {0: 'ant', 1: 'bee', 2: 'cow'}
    protocol = Protocol(dataset.metainfo['classes'], category_ids=ids, order=[2, 0, 1], sizes=[1])
    assert protocol.tasks == (('bee',),)
