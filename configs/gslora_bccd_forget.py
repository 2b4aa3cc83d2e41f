# Forget WBC on BCCD photographs: python tools/train.py configs/gslora_bccd_forget.py
_base_ = ['./bccd/deformable-detr_bccd.py', './_base_/forgetting.py']
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    _delete_=True,
    type='ForgettingDetector',
    detector=_base_.model,
    method=dict(type='GuidedGSLoRA'),
)
load_from = 'work_dirs/deformable-detr_bccd/epoch_60.pth'
train_dataloader = dict(
    batch_size=16,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=1.0,
        redraw='forget',  # a mirrored image to retain tells little more, and costs as much
    ),
)
val_evaluator = dict(type='ForgettingCocoMetric')
test_evaluator = dict(type='ForgettingCocoMetric')
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=dict(tasks=[['WBC']]),
    epochs_per_task=3,
    steps_per_task=216,
)
optim_wrapper = dict(optimizer=dict(lr=2e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
