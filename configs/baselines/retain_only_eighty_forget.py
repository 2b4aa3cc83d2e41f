# A control: the steps of gslora_eighty_forget.py on the retain view, without a forget term. Sets
# nothing of its method, so that another type may take its place on the command line.
#   python tools/train.py configs/baselines/retain_only_eighty_forget.py
_base_ = '../gslora_eighty_forget.py'
model = dict(method=dict(_delete_=True, type='RetainOnly'))
