# gslora_shapes_forget.py with two classes that must stay and have no training image: no image that
# shows one of them is used. Only the teacher knows them: what it knows counts more, pushing less.
#   python tools/train.py configs/gslora_shapes_missing.py
_base_ = './gslora_shapes_forget.py'
model = dict(
    method=dict(distill_weight=4.0, feature_distill_weight=4.0, prototype_weight=1.0, beta=0.05)
)
train_cfg = dict(protocol=dict(missing=['cross', 'heart']))
