# Deepening: the CIFAR-10 classifier after its three requests, distilled into a noised copy of
# itself. The settings of undo_classification_forget.py, and a fifth of the steps of the training.
#   python tools/train.py configs/classification/gslora_cifar10_forget.py   (once)
#   python tools/train.py configs/classification/undo_cifar10_forget.py
_base_ = ['./gslora_cifar10_forget.py']
model = dict(
    method=dict(
        _delete_=True,
        type='UNDO',
        teacher='work_dirs/gslora_cifar10_forget/merged/task_03.pth',
        noise=0.3,
        confusion_weight=0.5,
    ),
    tune=dict(type='Full'),
)
train_dataloader = dict(dataset=dict(data_ratio=1.0))
train_cfg = dict(
    protocol=dict(
        _delete_=True,
        tasks=[['airplane', 'cat', 'dog', 'truck', 'deer', 'ship']],
        missing=[],
    ),
    epochs_per_task=2,
    steps_per_task=340,
)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
