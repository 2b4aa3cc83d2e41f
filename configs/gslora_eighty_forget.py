# The COCO protocol at a size that runs on two cores: 70 of eighty generated classes are forgotten
# in seven requests of ten, our method.
#   python tools/train.py configs/eighty/deformable-detr_eighty.py   (once: the detector)
#   python tools/train.py configs/gslora_eighty_forget.py
_base_ = [
    './eighty/deformable-detr_eighty.py',
    './_base_/forgetting.py',
    './_base_/protocols/eighty_7x10.py',
]
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    _delete_=True,
    type='ForgettingDetector',
    detector=_base_.model,
    method=dict(type='GuidedGSLoRA', distill_weight=14),  # ten classes at a time
)
load_from = 'work_dirs/deformable-detr_eighty/epoch_9.pth'
train_dataloader = dict(
    batch_size=16,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        min_images=30,  # of rare classes too
        redraw=False,  # an image goes through what does not learn once
    ),
)
val_evaluator = dict(type='ForgettingCocoMetric')
test_evaluator = val_evaluator
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=6,
    steps_per_task=432,
)
optim_wrapper = dict(optimizer=dict(lr=2e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
