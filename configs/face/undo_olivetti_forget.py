# Deepening: the Olivetti recogniser after its four requests, distilled into a noised copy of
# itself. As ../classification/undo_classification_forget.py, with a sixth of the steps of the
# training.
#   python tools/train.py configs/face/gslora_olivetti_forget.py   (once)
#   python tools/train.py configs/face/undo_olivetti_forget.py
_base_ = ['./gslora_olivetti_forget.py']
model = dict(
    method=dict(
        _delete_=True,
        type='UNDO',
        teacher='work_dirs/gslora_olivetti_forget/merged/task_04.pth',
        noise=0.3,
        confusion_weight=0.5,
    ),
    tune=dict(type='Full'),
)
train_cfg = dict(
    protocol=dict(
        _delete_=True,
        tasks=[[f's{number:02d}' for number in range(21, 41)]],
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
