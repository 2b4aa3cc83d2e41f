# Our method on the Olivetti faces: four requests of five persons each; twenty stay.
#   python tools/train.py configs/face/face-transformer_olivetti.py   (once: the recogniser)
#   python tools/train.py configs/face/gslora_olivetti_forget.py
_base_ = [
    './face-transformer_olivetti.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
    '../_base_/protocols/olivetti_4x5.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=_base_.model,
    method=_base_.guided,
)
load_from = 'work_dirs/face-transformer_olivetti/epoch_300.pth'
train_dataloader = dict(
    batch_size=40,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=1.0,
    ),
)
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=20,
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
