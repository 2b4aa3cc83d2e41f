# Deepening: the demo's model after its three requests, distilled into a noised copy of itself, so
# that the six classes are gone from inside, too. One request for all of them.
#   python tools/train.py configs/gslora_shapes_forget.py   (once: the model that forgot)
#   python tools/train.py configs/undo_shapes_forget.py
_base_ = ['./gslora_shapes_forget.py']
model = dict(
    method=dict(
        _delete_=True,
        type='UNDO',
        teacher='work_dirs/gslora_shapes_forget/merged/task_03.pth',
        noise=dict(decoder=0.2),
    ),
    tune=dict(type='Full', target=r'(decoder|bbox_head)\..*'),
)
# All images, each always the same: what does not learn is computed once for each.
train_dataloader = dict(
    dataset=dict(
        data_ratio=1.0,
        dataset=dict(
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs'),
            ]
        ),
    ),
)
train_cfg = dict(
    protocol=dict(
        _delete_=True,
        tasks=[['circle', 'square', 'triangle', 'star', 'ring', 'arrow']],
        missing=[],
    ),
    epochs_per_task=10,
    steps_per_task=1670,
)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3), clip_grad=dict(max_norm=0.3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
