# A small Face Transformer with CosFace on the Olivetti faces, from nothing.
#   python tools/train.py configs/face/face-transformer_olivetti.py
# Data under data/olivetti, see ../_base_/datasets/olivetti.py.
_base_ = [
    '../_base_/datasets/olivetti.py',
    '../_base_/schedules/vit_adamw.py',
    '../_base_/classifier_runtime.py',
]
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='FaceTransformer',
        image_size=64,
        num_layers=6,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=192,
        head_dim=24,
        dropout=0.0,
    ),
    # At the papers' scale of 64 this model is certain of its training images to the last bit of
    # float32, and a probability of exactly 1 has no gradient to ascend.
    head=dict(type='CosineMarginHead', embed_dims=96, num_classes=40, scale=16.0, margin=0.2),
)
train_cfg = dict(max_epochs=300, val_interval=50)
default_hooks = dict(checkpoint=dict(interval=50), logger=dict(interval=5))
