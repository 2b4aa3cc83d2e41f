# Our method on torchvision's ViT-B/16 and any images in class folders.
#   python tools/train.py configs/classification/vit-b16_folder.py   (once: the classifier)
#   python tools/train.py configs/classification/gslora_vit-b16_folder_forget.py \
#       --cfg-options train_cfg.protocol.tasks=[[cat],[dog,horse]]
# A classifier that is trained already: its state dict, torch.save(network.state_dict(), ...), is
# load_from. One without transformer blocks, such as a ResNet, has no place for adapters: in model
# tune=dict(type='Full'), in its method sparsity=dict(mode='none'), and a learning rate of 1e-4.
_base_ = [
    './vit-b16_folder.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=dict(_base_.model, weights=None),  # those of load_from
    method=_base_.guided,
)
load_from = 'work_dirs/vit-b16_folder/epoch_5.pth'
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
