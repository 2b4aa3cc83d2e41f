from mmgslora.families.detector import ForgettingDetector
from mmgslora.families.view import View

__all__ = ['ForgettingDetector', 'View']
