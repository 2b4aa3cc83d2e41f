from mmgslora.models.classifier import ImageClassifier
from mmgslora.models.face_transformer import FaceTransformer
from mmgslora.models.heads import CosineMarginHead, LinearHead
from mmgslora.models.imagenet_head import ImageNetHead, head_rows
from mmgslora.models.vision_transformer import VisionTransformer

__all__ = [
    'CosineMarginHead',
    'FaceTransformer',
    'ImageClassifier',
    'ImageNetHead',
    'LinearHead',
    'VisionTransformer',
    'head_rows',
]
