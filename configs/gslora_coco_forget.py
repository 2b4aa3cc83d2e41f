# GS-LoRA on COCO 2017 with MMDetection's Deformable DETR: the authors' seven tasks of ten classes.
#   python tools/train.py configs/gslora_coco_forget.py
# COCO is expected under data/coco. 10 % of the training images, 30 epochs per task, our default
# recipe; method=dict(type='GSLoRA', recipe='paper') is the authors'.
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    './_base_/forgetting.py',
    './_base_/protocols/coco_7x10.py',
]
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    _delete_=True,
    type='ForgettingDetector',
    detector=_base_.model,
    method=dict(type='GSLoRA'),
)
load_from = (
    'https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/'
    'deformable-detr_r50_16xb2-50e_coco/'
    'deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth'
)
train_dataloader = dict(
    batch_size=4,
    batch_sampler=None,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(_delete_=True, type='ForgettingViews', dataset=_base_.train_dataloader.dataset),
)
val_evaluator = dict(type='ForgettingCocoMetric')
test_evaluator = val_evaluator
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=30,
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = []
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
