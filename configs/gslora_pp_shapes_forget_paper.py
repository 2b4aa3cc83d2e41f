# gslora_shapes_forget.py with the authors' GS-LoRA++ as they have it for COCO; learning rate and
# steps are those of the demo.
#   python tools/train.py configs/gslora_pp_shapes_forget_paper.py
_base_ = ['./gslora_shapes_forget.py', './_base_/methods/gs_lora_pp_coco.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1, redraw=True))
