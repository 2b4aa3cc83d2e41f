# Our method on any images in class folders.
#   python tools/train.py configs/classification/vit_folder.py   (once: the classifier)
#   python tools/train.py configs/classification/gslora_folder_forget.py \
#       --cfg-options train_cfg.protocol.tasks=[[cat],[dog,horse]]
# A class is given by the name of its folder or its number among the sorted names, from 0.
_base_ = [
    './vit_folder.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=_base_.model,
    method=_base_.guided,
)
load_from = 'work_dirs/vit_folder/epoch_100.pth'
train_dataloader = dict(
    batch_size=64,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=0.1,
    ),
)
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=dict(tasks=[[0]]),
    epochs_per_task=10,
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
