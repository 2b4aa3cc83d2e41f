# Our method on CIFAR-10, or a part of it: three requests of two classes each.
#   python tools/train.py configs/classification/vit_cifar10.py   (once: the classifier)
#   python tools/train.py configs/classification/gslora_cifar10_forget.py
_base_ = [
    './vit_cifar10.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
    '../_base_/protocols/cifar10_3x2.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=_base_.model,
    method=_base_.guided,
)
load_from = 'work_dirs/vit_cifar10/epoch_60.pth'
train_dataloader = dict(
    batch_size=64,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=0.5,
    ),
)
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=10,
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
