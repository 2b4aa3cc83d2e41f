# gslora_shapes_few_shot.py without prototypes: embeddings are neither moved nor held.
#   python tools/train.py configs/gslora_shapes_few_shot_plain.py
_base_ = './gslora_shapes_few_shot.py'
model = dict(method=dict(prototype_weight=0.0, feature_distill_weight=0.0))
