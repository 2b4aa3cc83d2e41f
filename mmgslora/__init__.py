"""Continual forgetting with Group Sparse LoRA for MMDetection."""

import warnings

from . import compat

__version__ = '0.1.0'

# `python -m mmgslora.compat` imports this package first, and runpy warns of what it then finds.
warnings.filterwarnings('ignore', r"'mmgslora\.compat' found in sys\.modules", RuntimeWarning)
compat.install()
