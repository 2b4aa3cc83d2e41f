# SalUn (arXiv 2310.12508): random labels for the forget view, on the half of the parameters that
# matter most for it; images, steps and schedule are the demo's.
#   python tools/train.py configs/baselines/salun_shapes_forget.py
_base_ = '../gslora_shapes_forget.py'
model = dict(method=dict(_delete_=True, type='SalUn'))
train_dataloader = dict(dataset=dict(redraw=True))
optim_wrapper = dict(optimizer=dict(lr=5e-4))
