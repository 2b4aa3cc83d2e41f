# The demo's classifier: a small Vision Transformer on ten generated shape classes.
#   python tools/train.py configs/classification/vit_shapes.py
_base_ = ['../_base_/datasets/shape_folders.py', '../_base_/classifier_runtime.py']
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        image_size=32,
        patch_size=8,
        num_layers=5,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=192,
    ),
    head=dict(type='LinearHead', embed_dims=96, num_classes=10),
)
max_epochs = 12
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
