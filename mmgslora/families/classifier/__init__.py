"""Image classifiers and face recognisers."""

from mmgslora.families.classifier.audited import AuditedClassifier, ClassificationImages
from mmgslora.families.classifier.drawing import LabelDrawing
from mmgslora.families.classifier.imagenet900_hook import ImageNet900Hook
from mmgslora.families.classifier.metric import ForgettingAccuracyMetric
from mmgslora.families.classifier.model import ForgettingClassifier
from mmgslora.families.registry import Family, register_family

register_family(
    Family(
        'classifier', ForgettingClassifier, AuditedClassifier, ClassificationImages, LabelDrawing
    )
)

__all__ = [
    'AuditedClassifier',
    'ClassificationImages',
    'ForgettingAccuracyMetric',
    'ForgettingClassifier',
    'ImageNet900Hook',
]
