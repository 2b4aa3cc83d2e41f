"""What is being trained: one folder per family, found through a registry."""

from mmgslora.families.registry import FAMILIES, Family, family_of, register_family
from mmgslora.families.view import View

__all__ = ['FAMILIES', 'Family', 'View', 'family_of', 'register_family']
