from .every_query import match_every_query
from .forgetting_accuracy_metric import ForgettingAccuracyMetric
from .forgetting_coco_metric import ForgettingCocoMetric
from .grouping import class_groups, group_by_partition, harmonic_mean
from .pretrained import (
    labels_measured_whole,
    pretrained_values,
    publish_tasks,
    published_tasks,
    remember_pretrained,
)

__all__ = [
    'ForgettingAccuracyMetric',
    'ForgettingCocoMetric',
    'class_groups',
    'group_by_partition',
    'harmonic_mean',
    'labels_measured_whole',
    'match_every_query',
    'pretrained_values',
    'publish_tasks',
    'published_tasks',
    'remember_pretrained',
]
