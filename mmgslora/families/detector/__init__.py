"""DETR-like detectors of MMDetection."""

from mmgslora.families.detector.attention import attend_in_float32
from mmgslora.families.detector.audited import AuditedDetector, DetectionImages
from mmgslora.families.detector.drawing import DetectionDrawing
from mmgslora.families.detector.metric import ForgettingCocoMetric
from mmgslora.families.detector.model import ForgettingDetector
from mmgslora.families.detector.plain_config import without_package
from mmgslora.families.registry import Family, register_family

attend_in_float32()
register_family(
    Family(
        'detector',
        ForgettingDetector,
        AuditedDetector,
        DetectionImages,
        DetectionDrawing,
        ForgettingCocoMetric,
        without_package,
    )
)

__all__ = ['AuditedDetector', 'DetectionImages', 'ForgettingCocoMetric', 'ForgettingDetector']
