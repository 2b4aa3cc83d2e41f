# gslora_eighty_forget.py with the authors' GS-LoRA as they have it for COCO, their schedule
# included: 30 epochs of 10 % of the images. One process stands for their eight GPUs.
#   python tools/train.py configs/gslora_eighty_forget_paper.py
_base_ = ['./gslora_eighty_forget.py', './_base_/methods/gs_lora_coco.py']
paper = _base_.paper
model = dict(method=dict(_delete_=True, **paper.method))
train_dataloader = dict(
    batch_size=8 * paper.batch_size,
    sampler=dict(by_class=False),
    dataset=dict(data_ratio=paper.data_ratio, min_images=1, redraw=True),
)
train_cfg = dict(steps_per_task=None, epochs_per_task=paper.epochs_per_task)
optim_wrapper = dict(_delete_=True, **paper.optim_wrapper)
param_scheduler = paper.param_scheduler
