# Our method on generated faces: three requests of four persons each, our method.
#   python tools/train.py configs/face/face-transformer_generated.py   (once: the recogniser)
#   python tools/train.py configs/face/gslora_face_forget.py
_base_ = [
    './face-transformer_generated.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
    '../_base_/protocols/faces_3x4.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=_base_.model,
    method=dict(sparsity=dict(alpha=0.4, select=0.6), **_base_.guided),
    cache_gb=1,  # nothing is drawn at random: an image is the same in every pass
)
load_from = 'work_dirs/face-transformer_generated/epoch_14.pth'
train_dataloader = dict(
    batch_size=32,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=0.5,
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
