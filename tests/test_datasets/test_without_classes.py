import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmgslora.datasets import SHAPES, WithoutClasses
from mmgslora.errors import ForgettingError


@pytest.fixture
def base(tiny_cfg):
    return DATASETS.build(tiny_cfg.train_dataloader.dataset.dataset)


def test_boxes_and_bare_images_go(base):
    gone = {SHAPES.index('circle'), SHAPES.index('star')}
    base.full_init()
    truth = [
        [x['bbox_label'] for x in base.get_data_info(i)['instances']] for i in range(len(base))
    ]
    wanted = [[x for x in labels if x not in gone] for labels in truth]
    wanted = [labels for labels in wanted if labels]
    assert len(wanted) < len(truth)  # the data have an image to leave out
    dataset = WithoutClasses(base, [['circle'], 'star'])
    found = [dataset[i]['data_samples'].gt_instances.labels.tolist() for i in range(len(dataset))]
    assert found == wanted
    assert dataset.metainfo['classes'] == SHAPES


def test_one_label_each():
    class Labels:
        metainfo = dict(classes=('a', 'b', 'c'))

        def full_init(self):
            pass

        def __len__(self):
            return 4

        def get_data_info(self, index):
            return dict(gt_label=[0, 1, 2, 1][index])

        def pipeline(self, info):
            return info

    dataset = WithoutClasses(Labels(), ['b'])
    assert [dataset[i]['gt_label'] for i in range(len(dataset))] == [0, 2]
    with pytest.raises(ForgettingError, match='Without a, b, c no training image'):
        WithoutClasses(Labels(), ['a', 'b', 'c'])


def test_unknown_class(base):
    with pytest.raises(ForgettingError, match="'blob'.*circle"):
        WithoutClasses(base, ['blob'])


def test_the_oracle_config_leaves_out_the_requests(repo_root):
    cfg = Config.fromfile(repo_root / 'configs/shapes/deformable-detr_shapes_oracle.py')
    forget = Config.fromfile(repo_root / 'configs/gslora_shapes_forget.py')
    assert cfg.train_dataloader.dataset.classes == forget.train_cfg.protocol.tasks
    assert cfg.model == forget.model.detector
