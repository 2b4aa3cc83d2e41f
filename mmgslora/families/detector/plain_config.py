"""The config of a plain detector, which MMDetection builds with nothing of mmgslora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS


def without_package(config: dict[str, Any], classes: Sequence[str]) -> None:
    """Put MMDetection's own metric and data set in the place of ours."""
    given = config.get('test_evaluator') or []
    for evaluator in [given] if isinstance(given, Mapping) else given:
        if evaluator['type'] == 'ForgettingCocoMetric':
            evaluator['type'] = 'CocoMetric'
            evaluator.pop('recall_scores', None)
    dataset = (config.get('test_dataloader') or {}).get('dataset')
    if dataset and getattr(DATASETS.get(dataset['type']), 'makes_its_files', False):
        dataset.update(type='CocoDataset', metainfo=dict(classes=tuple(classes)))
        dataset.pop('generate', None)
