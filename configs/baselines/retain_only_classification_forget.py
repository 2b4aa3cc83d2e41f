# A control: the classification demo's steps and images without a forget term.
#   python tools/train.py configs/baselines/retain_only_classification_forget.py
_base_ = '../classification/gslora_classification_forget.py'
model = dict(method=dict(_delete_=True, type='RetainOnly'))
