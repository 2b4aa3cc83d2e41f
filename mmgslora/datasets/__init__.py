from mmgslora.datasets.protocol import ClassPartition, Protocol
from mmgslora.datasets.shapes import SHAPES, ShapesDataset, write_shapes
from mmgslora.datasets.views import ForgettingViews, PairedSampler

__all__ = [
    'SHAPES',
    'ClassPartition',
    'ForgettingViews',
    'PairedSampler',
    'Protocol',
    'ShapesDataset',
    'write_shapes',
]
