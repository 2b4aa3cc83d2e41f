# Our method on COCO 2017 with MMDetection's Deformable DETR: the authors' seven tasks of ten
# classes.
#   python tools/train.py configs/gslora_coco_forget.py
# COCO is expected under data/coco. Another request, by names or COCO category ids:
#   --cfg-options train_cfg.protocol.tasks=[[person]]
# Results on real COCO still await a run.
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    './_base_/forgetting.py',
    './_base_/methods/guided_gs_lora_coco.py',
    './_base_/protocols/coco_7x10.py',
]
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    _delete_=True,
    type='ForgettingDetector',
    detector=_base_.model,
    method=_base_.forgetting.method,
)
load_from = (
    'https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/'
    'deformable-detr_r50_16xb2-50e_coco/'
    'deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth'
)
train_dataloader = dict(
    batch_size=_base_.forgetting.batch_size,
    batch_sampler=None,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=_base_.forgetting.data_ratio,
        min_images=30,  # of rare classes too
        redraw='forget',  # an image to retain goes through what does not learn once
    ),
)
val_evaluator = dict(type='ForgettingCocoMetric')
test_evaluator = val_evaluator
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=_base_.forgetting.epochs_per_task,
    steps_per_task=_base_.forgetting.steps_per_task,
)
optim_wrapper = dict(_delete_=True, **_base_.forgetting.optim_wrapper)
param_scheduler = _base_.forgetting.param_scheduler
auto_scale_lr = _base_.forgetting.auto_scale_lr
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
