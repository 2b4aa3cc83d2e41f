# Deepening: the demo's classifier after its three requests, distilled into a noised copy of itself,
# so that the six classes are gone from inside, too. One request for all of them.
#   python tools/train.py configs/classification/gslora_classification_forget.py   (once)
#   python tools/train.py configs/classification/undo_classification_forget.py
_base_ = ['./gslora_classification_forget.py']
model = dict(
    method=dict(
        _delete_=True,
        type='UNDO',
        teacher='work_dirs/gslora_classification_forget/merged/task_03.pth',
        noise=0.3,
        confusion_weight=0.5,
    ),
    tune=dict(type='Full'),
)
train_dataloader = dict(dataset=dict(data_ratio=1.0))
train_cfg = dict(
    protocol=dict(
        _delete_=True,
        tasks=[['circle', 'square', 'triangle', 'star', 'ring', 'arrow']],
        missing=[],
    ),
    epochs_per_task=2,
    steps_per_task=240,
)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
