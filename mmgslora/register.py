"""Import everything of mmgslora that configs name; the one line of ``custom_imports``."""

from mmgslora import datasets, engine, evaluation, families, methods, models

__all__ = ['datasets', 'engine', 'evaluation', 'families', 'methods', 'models']
