# Our method on the generated shapes: three requests of two classes each, our method.
#   python tools/train.py configs/classification/vit_shapes.py   (once: the classifier)
#   python tools/train.py configs/classification/gslora_classification_forget.py
_base_ = [
    './vit_shapes.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
    '../_base_/protocols/shapes_3x2.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=_base_.model,
    method=dict(sparsity=dict(alpha=0.4, select=0.6), **_base_.guided),
    cache_gb=1,  # nothing is drawn at random: an image is the same in every pass
)
load_from = 'work_dirs/vit_shapes/epoch_12.pth'
train_dataloader = dict(
    batch_size=32,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=0.2,
        redraw=False,
    ),
)
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=8,
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
