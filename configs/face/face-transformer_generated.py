# The demo's face recogniser: a small Face Transformer with CosFace on 24 generated persons.
#   python tools/train.py configs/face/face-transformer_generated.py
_base_ = [
    '../_base_/datasets/generated_faces.py',
    '../_base_/schedules/vit_adamw.py',
    '../_base_/classifier_runtime.py',
]
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='FaceTransformer',
        image_size=56,
        num_layers=6,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=192,
        head_dim=24,
        dropout=0.0,
    ),
    # At the papers' scale of 64 this model is certain of its training images to the last bit of
    # float32, and a probability of exactly 1 has no gradient to ascend.
    head=dict(type='CosineMarginHead', embed_dims=96, num_classes=24, scale=16.0, margin=0.2),
)
train_cfg = dict(max_epochs=14, val_interval=14)
