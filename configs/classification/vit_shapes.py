# The demo's classifier: a small Vision Transformer on ten generated shape classes.
#   python tools/train.py configs/classification/vit_shapes.py
_base_ = [
    '../_base_/datasets/shape_folders.py',
    '../_base_/schedules/vit_adamw.py',
    '../_base_/classifier_runtime.py',
]
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
