# The papers' Face Transformer (ViT-P8S8, depth 6) with CosFace on CASIA-Face100, the authors'
# pre-training: 1200 epochs at batch 480.
#   python tools/train.py configs/face/face-transformer_casia100.py
# Data under data/casia_face100, see ../_base_/datasets/casia_face100.py. Awaits a run; their
# released weights come through tools/convert_face_transformer.py.
_base_ = ['../_base_/datasets/casia_face100.py', '../_base_/classifier_runtime.py']
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='FaceTransformer'),
    head=dict(type='CosineMarginHead', embed_dims=512, num_classes=100),
)
max_epochs = 1200
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=20)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 300, by_epoch=True, begin=0, end=10),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=10, T_max=max_epochs - 10, eta_min=1e-5),
]
