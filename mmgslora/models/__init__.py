from mmgslora.models.classifier import ImageClassifier
from mmgslora.models.face_transformer import FaceTransformer
from mmgslora.models.heads import SEALED_LOGIT, CosineMarginHead, LinearHead, seal_layer
from mmgslora.models.imagenet_head import ImageNetHead, head_rows
from mmgslora.models.vision_transformer import VisionTransformer

__all__ = [
    'SEALED_LOGIT',
    'CosineMarginHead',
    'FaceTransformer',
    'ImageClassifier',
    'ImageNetHead',
    'LinearHead',
    'VisionTransformer',
    'head_rows',
    'seal_layer',
]
