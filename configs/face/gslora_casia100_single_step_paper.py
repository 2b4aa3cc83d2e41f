# gslora_casia100_single_step.py with the authors' GS-LoRA: bound 110, beta 0.05, no sparsity in the
# first 20 epochs and 0.01 from then on. Another Y: --cfg-options train_cfg.protocol.sizes=[50]
#   python tools/train.py configs/face/gslora_casia100_single_step_paper.py
# Awaits a run.
_base_ = ['./gslora_casia100_single_step.py', '../_base_/methods/gs_lora_face_single_step.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
