# gslora_casia100_single_step.py with the authors' GS-LoRA++ and two images of every identity, in
# batches of four and four. (Their 20 copies of each image for the prototypes are identical, by an
# error; here the prototypes are plain means.)
#   python tools/train.py configs/face/gslora_pp_casia100_single_step_few_shot_paper.py
# Awaits a run.
_base_ = [
    './gslora_casia100_single_step.py',
    '../_base_/methods/gs_lora_pp_face_single_step_few_shot.py',
]
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(
    batch_size=8, sampler=dict(by_class=False), dataset=dict(few_shot=2, min_images=1)
)
