# gslora_casia100_few_shot.py with the authors' GS-LoRA++: four images of every identity in batches
# of four and four, beta and w_f per task, prototype bound 50.
#   python tools/train.py configs/face/gslora_pp_casia100_few_shot_paper.py
# Awaits a run.
_base_ = ['./gslora_casia100_few_shot.py', '../_base_/methods/gs_lora_pp_face_few_shot.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
