# gslora_imagenet100_forget.py with the authors' method: bound 105, their beta for each of four
# tasks, sparsity as a penalty of weight 1e-4.
#   python tools/train.py configs/classification/gslora_imagenet100_forget_paper.py
# Awaits a run.
_base_ = './gslora_imagenet100_forget.py'
model = dict(method=dict(_delete_=True, type='GSLoRA', recipe='paper_imagenet'))
