# The demo's face recogniser: a small Face Transformer with CosFace on 24 generated persons.
#   python tools/train.py configs/face/face-transformer_generated.py
_base_ = ['../_base_/datasets/generated_faces.py', '../_base_/classifier_runtime.py']
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
max_epochs = 14
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
