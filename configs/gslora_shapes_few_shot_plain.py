# gslora_shapes_few_shot.py with plain GS-LoRA: no prototypes, the head stays as it is.
#   python tools/train.py configs/gslora_shapes_few_shot_plain.py
_base_ = './gslora_shapes_few_shot.py'
model = dict(method=dict(_delete_=True, type='GSLoRA', drift=4.0))
