# gslora_coco_forget.py with the authors' GS-LoRA++, their journal script for detection: the rows of
# the class head as prototypes, 32 images per class. (They draw 32 times the number of classes from
# all images; here it is 32 of each class.)
#   python tools/train.py configs/gslora_pp_coco_few_shot_paper.py
# COCO is expected under data/coco. Results on real COCO still await a run.
_base_ = ['./gslora_coco_few_shot.py', './_base_/methods/gs_lora_pp_coco.py']
paper = _base_.paper
model = dict(method=dict(_delete_=True, **paper.method))
train_dataloader = dict(
    batch_size=paper.batch_size,
    sampler=dict(by_class=False),
    dataset=dict(data_ratio=paper.data_ratio, min_images=1),
)
train_cfg = dict(steps_per_task=None, epochs_per_task=paper.epochs_per_task)
optim_wrapper = dict(_delete_=True, **paper.optim_wrapper)
param_scheduler = paper.param_scheduler
auto_scale_lr = paper.auto_scale_lr
