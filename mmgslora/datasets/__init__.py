from mmgslora.datasets.folder import FolderDataset
from mmgslora.datasets.generated_faces import GeneratedFacesDataset
from mmgslora.datasets.protocol import ClassPartition, Protocol
from mmgslora.datasets.scenes import SCENE_CLASSES, ScenesDataset, write_scenes
from mmgslora.datasets.shape_folders import ShapeFolderDataset
from mmgslora.datasets.shapes import SHAPES, ShapesDataset, write_shapes
from mmgslora.datasets.views import ForgettingViews, PairedSampler
from mmgslora.datasets.without_classes import WithoutClasses

__all__ = [
    'SCENE_CLASSES',
    'SHAPES',
    'ClassPartition',
    'FolderDataset',
    'ForgettingViews',
    'GeneratedFacesDataset',
    'PairedSampler',
    'Protocol',
    'ScenesDataset',
    'ShapeFolderDataset',
    'ShapesDataset',
    'WithoutClasses',
    'write_scenes',
    'write_shapes',
]
