# Our method on ImageNet100: the authors' four tasks of twenty classes, on torchvision's ViT-B/16 as
# published; our method with the authors' data, epochs and learning rate.
#   python tools/train.py configs/classification/gslora_imagenet100_forget.py
# Data under data/imagenet100, see ../_base_/datasets/imagenet100.py. Awaits a run.
_base_ = [
    './vit-b16_imagenet100.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
    '../_base_/protocols/hundred_4x20.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=_base_.model,
    method=_base_.guided,
)
train_dataloader = dict(
    batch_size=96,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=0.05,
    ),
)
train_cfg = dict(
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=100,
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, eta_min=1e-5, convert_to_iter_based=True),
]
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
custom_hooks = [
    *_base_.custom_hooks,
    # The images of the 900 other classes, data/imagenet_val_split/nonexist/<wnid>/; without them
    # this check is left out.
    dict(
        type='ImageNet900Hook',
        dataloader=dict(
            batch_size=128,
            num_workers=8,
            dataset=dict(
                type='FolderDataset',
                data_root='data/imagenet_val_split/',
                folder='nonexist',
                transforms=_base_.seen.transforms,
                test_mode=True,
            ),
        ),
    ),
]
