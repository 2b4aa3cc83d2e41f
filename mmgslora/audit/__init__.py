from .audited_model import AuditedModel, Images, Objects, without_rows
from .divergence import js_divergence, zero_retrain_forgetting
from .membership import membership_auc
from .outcomes import nearest_classes, outcomes
from .probes import draw_objects, fit_probe, probe_accuracy
from .relearning import Curve, area_between, relearning_curve, steps_to_oracle
from .verdict import Limits, Verdict, judge_request, limits_of, worst

__all__ = [
    'Curve',
    'Images',
    'Limits',
    'Objects',
    'AuditedModel',
    'Verdict',
    'area_between',
    'draw_objects',
    'fit_probe',
    'js_divergence',
    'judge_request',
    'limits_of',
    'without_rows',
    'worst',
    'membership_auc',
    'nearest_classes',
    'probe_accuracy',
    'relearning_curve',
    'steps_to_oracle',
    'outcomes',
    'zero_retrain_forgetting',
]
