# gslora_shapes_missing.py with the authors' GS-LoRA (at our learning rate): no teacher.
#   python tools/train.py configs/gslora_shapes_missing_paper.py
_base_ = ['./gslora_shapes_missing.py', './_base_/methods/gs_lora_coco.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1, redraw=True))
