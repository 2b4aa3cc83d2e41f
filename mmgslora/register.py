"""Import everything of mmgslora that configs name; the one line of ``custom_imports``."""

from mmgslora import datasets, engine, methods, models
from mmgslora.families import classifier, detector

__all__ = ['classifier', 'datasets', 'detector', 'engine', 'methods', 'models']
