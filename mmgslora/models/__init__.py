from mmgslora.models.classifier import Classifier, ImageClassifier
from mmgslora.models.face_transformer import FaceTransformer
from mmgslora.models.heads import SEALED_LOGIT, CosineMarginHead, LinearHead, seal_layer
from mmgslora.models.imagenet_head import ImageNetHead, head_rows
from mmgslora.models.library_classifier import (
    LibraryClassifier,
    TimmClassifier,
    TorchvisionClassifier,
)
from mmgslora.models.vision_transformer import VisionTransformer

__all__ = [
    'SEALED_LOGIT',
    'Classifier',
    'CosineMarginHead',
    'FaceTransformer',
    'ImageClassifier',
    'ImageNetHead',
    'LibraryClassifier',
    'LinearHead',
    'TimmClassifier',
    'TorchvisionClassifier',
    'VisionTransformer',
    'head_rows',
    'seal_layer',
]
