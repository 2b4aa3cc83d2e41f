# The demo's detector: a small Deformable DETR on ten generated shape classes.
#   python tools/train.py configs/shapes/deformable-detr_shapes.py
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmgslora.datasets'])
max_epochs = 12
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        T_max=max_epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    ),
]
