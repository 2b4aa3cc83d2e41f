# A small Vision Transformer on CIFAR-10, or a part of it, from nothing.
#   python tools/train.py configs/classification/vit_cifar10.py
# Data under data/cifar10_mini, see ../_base_/datasets/cifar10.py.
_base_ = ['../_base_/datasets/cifar10.py', '../_base_/classifier_runtime.py']
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        image_size=32,
        patch_size=4,
        num_layers=6,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=192,
    ),
    head=dict(type='LinearHead', embed_dims=96, num_classes=10),
)
max_epochs = 60
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=20)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
