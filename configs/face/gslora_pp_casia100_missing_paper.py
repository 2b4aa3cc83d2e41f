# gslora_casia100_missing.py with the authors' GS-LoRA++: no sparsity in the first 30 epochs of a
# task, w_f 3e-4.
#   python tools/train.py configs/face/gslora_pp_casia100_missing_paper.py
# Awaits a run.
_base_ = ['./gslora_casia100_missing.py', '../_base_/methods/gs_lora_pp_face_missing.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
