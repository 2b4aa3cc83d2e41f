# gslora_casia100_forget.py with the authors' GS-LoRA: bound 105, their beta for each of four tasks,
# sparsity as a penalty of weight 1e-4, dropout on.
#   python tools/train.py configs/face/gslora_casia100_forget_paper.py
# Awaits a run.
_base_ = ['./gslora_casia100_forget.py', '../_base_/methods/gs_lora_face.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
