# gslora_casia100_single_step.py with the authors' GS-LoRA++. Prototypes are the original model's;
# theirs come from a model that is still random. Another Y: --cfg-options
# train_cfg.protocol.sizes=[50]
#   python tools/train.py configs/face/gslora_pp_casia100_single_step_paper.py
# Awaits a run.
_base_ = ['./gslora_casia100_single_step.py', '../_base_/methods/gs_lora_pp_face_single_step.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
