from mmgslora.families.base import ForgettingModel
from mmgslora.families.classifier import ForgettingClassifier
from mmgslora.families.detector import ForgettingDetector
from mmgslora.families.view import View

__all__ = ['ForgettingClassifier', 'ForgettingDetector', 'ForgettingModel', 'View']
