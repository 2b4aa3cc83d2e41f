from .grouping import group_by_partition, harmonic_mean
from .pretrained import (
    labels_measured_whole,
    pretrained_values,
    publish_tasks,
    published_tasks,
    remember_pretrained,
)

__all__ = [
    'group_by_partition',
    'harmonic_mean',
    'labels_measured_whole',
    'pretrained_values',
    'publish_tasks',
    'published_tasks',
    'remember_pretrained',
]
