import pytest

from mmgslora.datasets.files import check_files
from mmgslora.errors import ForgettingError


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'ann.json').write_text('{}')
    return dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='ann.json',
        data_prefix=dict(img='images/'),
    )


def test_what_is_there_passes(dataset):
    check_files(dataset)
    check_files(dict(type='ForgettingViews', dataset=dataset))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(ann_file='no.json'), "Annotation file '.*no.json' does not exist"),
        (dict(data_prefix=dict(img='no/')), "Image folder '.*no' does not exist"),
        (dict(data_root='nowhere'), "Annotation file 'nowhere/ann.json'"),
    ],
)
def test_what_is_missing_is_named(dataset, change, words):
    with pytest.raises(ForgettingError, match=words):
        check_files(dict(type='ForgettingViews', dataset=dataset | change))


def test_remote_and_generated_data_are_left_alone():
    check_files(dict(type='CocoDataset', data_root='s3://bucket/', ann_file='a.json'))
    check_files(dict(type='ShapesDataset', data_root='nowhere/', ann_file='a.json'))
