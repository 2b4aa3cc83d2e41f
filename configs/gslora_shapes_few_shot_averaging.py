# gslora_shapes_few_shot.py; the average over the second half of a task's steps is its result.
#   python tools/train.py configs/gslora_shapes_few_shot_averaging.py
_base_ = './gslora_shapes_few_shot.py'
train_cfg = dict(epochs_per_task=4)  # half of which can be averaged
custom_hooks = [*_base_.custom_hooks, dict(type='AveragingHook')]
