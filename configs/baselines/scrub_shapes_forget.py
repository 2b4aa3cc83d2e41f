# SCRUB (arXiv 2302.09880): epochs away from the original on the forget view, epochs back to it on
# the retain view, all parameters; images, steps and schedule are the demo's.
#   python tools/train.py configs/baselines/scrub_shapes_forget.py
_base_ = '../gslora_shapes_forget.py'
model = dict(method=dict(_delete_=True, type='SCRUB'))
train_dataloader = dict(dataset=dict(redraw=True))
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(epochs_per_task=9)  # the first and the third go away from the original
