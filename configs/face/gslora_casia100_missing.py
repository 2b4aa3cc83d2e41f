# gslora_casia100_forget.py where five identities that must stay have no training data: the first
# of the authors' order, as in their runs. Their method: gslora_pp_casia100_missing_paper.py.
#   python tools/train.py configs/face/gslora_casia100_missing.py
# Awaits a run.
_base_ = './gslora_casia100_forget.py'
train_cfg = dict(protocol=dict(missing=[83, 17, 10, 9, 89]))
