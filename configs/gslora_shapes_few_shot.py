# gslora_shapes_forget.py with exactly four images of every class per task (k = 1, 2, 8, ...:
# --cfg-options train_dataloader.dataset.few_shot=8). The method is the demo's, untouched.
#   python tools/train.py configs/gslora_shapes_few_shot.py
_base_ = './gslora_shapes_forget.py'
epochs_per_task = 40  # of two or three steps
train_dataloader = dict(dataset=dict(few_shot=4))
train_cfg = dict(epochs_per_task=epochs_per_task)
# A checkpoint at the end of every task and once in between, rather than after every few steps.
default_hooks = dict(checkpoint=dict(interval=epochs_per_task // 2))
