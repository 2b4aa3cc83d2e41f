"""MMDetection alone builds what the config in a merged file says of data and measuring."""

import copy

from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import METRICS

from mmgslora.families.detector.plain_config import without_package


def test_the_evaluator_has_no_argument_of_ours(tiny_cfg):
    evaluator = copy.deepcopy(tiny_cfg.test_evaluator)
    evaluator.recall_scores = (0.5,)
    config = Config(dict(test_evaluator=evaluator))
    without_package(config, ['circle'])
    assert type(METRICS.build(config.test_evaluator)) is CocoMetric
    assert config.test_evaluator.ann_file == evaluator.ann_file
