# NegGrad+ (arXiv 2302.09880): ascend on the forget view, descend on the retain view, all
# parameters; images, steps and schedule are the demo's.
#   python tools/train.py configs/baselines/neg_grad_plus_shapes_forget.py
_base_ = '../gslora_shapes_forget.py'
model = dict(method=dict(_delete_=True, type='NegGradPlus'))
train_dataloader = dict(dataset=dict(redraw=True))
optim_wrapper = dict(optimizer=dict(lr=5e-4))
