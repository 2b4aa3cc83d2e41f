# The authors' GS-LoRA (arXiv 2403.11530): images, steps and schedule of the face demo.
#   python tools/train.py configs/baselines/gs_lora_face_forget.py
_base_ = ['../face/gslora_face_forget.py', '../_base_/methods/gs_lora_face.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
