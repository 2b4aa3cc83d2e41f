# A small Vision Transformer on CIFAR-10, or a part of it, from nothing.
#   python tools/train.py configs/classification/vit_cifar10.py
# Data under data/cifar10_mini, see ../_base_/datasets/cifar10.py.
_base_ = [
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/vit_adamw.py',
    '../_base_/classifier_runtime.py',
]
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
train_cfg = dict(max_epochs=60, val_interval=20)
