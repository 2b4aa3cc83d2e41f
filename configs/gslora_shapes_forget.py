# The demo: three requests of two generated shape classes each, our method. The authors':
# gslora_shapes_forget_paper.py (GS-LoRA) and gslora_pp_shapes_forget_paper.py (GS-LoRA++). The
# same steps without a forget term, as a control:
#   --cfg-options model.method.type=RetainOnly train_dataloader.dataset.redraw=True
#   python tools/train.py configs/shapes/deformable-detr_shapes.py   (once: the detector)
#   python tools/train.py configs/gslora_shapes_forget.py
_base_ = [
    './shapes/deformable-detr_shapes.py',
    './_base_/forgetting.py',
    './_base_/protocols/shapes_3x2.py',
]
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    _delete_=True,
    type='ForgettingDetector',
    detector=_base_.model,
    method=dict(type='GuidedGSLoRA'),
)
load_from = 'work_dirs/deformable-detr_shapes/epoch_12.pth'
train_dataloader = dict(
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        redraw='forget',  # a mirrored image to retain tells little more, and costs as much
    ),
)
val_evaluator = dict(type='ForgettingCocoMetric')
test_evaluator = val_evaluator
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=3,
    steps_per_task=216,
)
optim_wrapper = dict(optimizer=dict(lr=2e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
