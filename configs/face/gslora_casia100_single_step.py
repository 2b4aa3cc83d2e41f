# gslora_casia100_forget.py with one task, the authors' "100-Y": forget the last Y of their order.
#   python tools/train.py configs/face/gslora_casia100_single_step.py \
#       --cfg-options train_cfg.protocol.sizes=[50]
# Y is 10 unless said; theirs are 5, 10, 50 and 90. The authors' methods:
# gslora_casia100_single_step_paper.py and gslora_pp_casia100_single_step_paper.py.
# Awaits a run.
_base_ = './gslora_casia100_forget.py'
train_cfg = dict(protocol=dict(sizes=[10]))
