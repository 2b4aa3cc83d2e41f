# gslora_imagenet100_forget.py with the authors' GS-LoRA: bound 105, their beta for each of four
# tasks, sparsity as a penalty of weight 1e-4.
#   python tools/train.py configs/classification/gslora_imagenet100_forget_paper.py
# Awaits a run.
_base_ = ['./gslora_imagenet100_forget.py', '../_base_/methods/gs_lora_imagenet100.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
