# gslora_imagenet100_forget.py with the authors' GS-LoRA++.
#   python tools/train.py configs/classification/gslora_pp_imagenet100_forget_paper.py
# Awaits a run.
_base_ = ['./gslora_imagenet100_forget.py', '../_base_/methods/gs_lora_pp_imagenet100.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
