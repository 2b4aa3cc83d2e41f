# The authors' GS-LoRA (arXiv 2403.11530): images, steps and schedule of the classification demo.
#   python tools/train.py configs/baselines/gs_lora_classification_forget.py
_base_ = [
    '../classification/gslora_classification_forget.py',
    '../_base_/methods/gs_lora_imagenet100.py',
]
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(sampler=dict(by_class=False), dataset=dict(min_images=1))
