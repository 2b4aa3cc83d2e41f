# gslora_casia100_forget.py with the authors' GS-LoRA++.
#   python tools/train.py configs/face/gslora_pp_casia100_forget_paper.py
# Awaits a run.
_base_ = ['./gslora_casia100_forget.py', '../_base_/methods/gs_lora_pp_face.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
