# gslora_casia100_forget.py with four images of every identity instead of a tenth of all, in
# batches of four and four. The authors' method: gslora_pp_casia100_few_shot_paper.py.
#   python tools/train.py configs/face/gslora_casia100_few_shot.py
# Awaits a run.
_base_ = './gslora_casia100_forget.py'
train_dataloader = dict(batch_size=8, dataset=dict(few_shot=4))
