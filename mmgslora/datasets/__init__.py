from mmgslora.datasets.protocol import ClassPartition, Protocol
from mmgslora.datasets.shapes import SHAPES, ShapesDataset, write_shapes
from mmgslora.datasets.views import ForgettingViews, PairedSampler
from mmgslora.datasets.without_classes import WithoutClasses

__all__ = [
    'SHAPES',
    'ClassPartition',
    'ForgettingViews',
    'PairedSampler',
    'Protocol',
    'ShapesDataset',
    'WithoutClasses',
    'write_shapes',
]
