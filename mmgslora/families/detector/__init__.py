"""DETR-like detectors of MMDetection."""

from mmgslora.families.detector.audited import AuditedDetector, DetectionImages
from mmgslora.families.detector.drawing import DetectionDrawing
from mmgslora.families.detector.metric import ForgettingCocoMetric
from mmgslora.families.detector.model import ForgettingDetector
from mmgslora.families.registry import Family, register_family

register_family(
    Family('detector', ForgettingDetector, AuditedDetector, DetectionImages, DetectionDrawing)
)

__all__ = ['AuditedDetector', 'DetectionImages', 'ForgettingCocoMetric', 'ForgettingDetector']
