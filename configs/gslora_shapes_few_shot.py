# gslora_shapes_forget.py with exactly four images of every class per task.
#   python tools/train.py configs/gslora_shapes_few_shot.py
_base_ = './gslora_shapes_forget.py'
train_dataloader = dict(dataset=dict(few_shot=4))
# As few images as these make an epoch of about three steps.
train_cfg = dict(epochs_per_task=60)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=60),
]
