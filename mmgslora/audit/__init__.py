from .classifier_subject import ClassificationImages, ClassifierSubject
from .detector_subject import DetectionImages, DetectorSubject
from .divergence import js_divergence, zero_retrain_forgetting
from .membership import membership_auc
from .outcomes import nearest_classes, outcomes
from .probes import draw_objects, fit_probe, probe_accuracy
from .relearning import Curve, area_between, relearning_curve, steps_to_oracle
from .subject import Images, Objects, Subject, without_rows
from .verdict import Verdict, judge_request, limits_of, worst

__all__ = [
    'ClassificationImages',
    'ClassifierSubject',
    'Curve',
    'DetectionImages',
    'DetectorSubject',
    'Images',
    'Objects',
    'Subject',
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
