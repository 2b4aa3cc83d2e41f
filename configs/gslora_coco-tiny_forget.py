# The authors' seven requests of ten COCO classes on images learned by heart, our method as it is
# for COCO.
#   python tools/train.py configs/coco_tiny/deformable-detr_coco-tiny.py   (once: the detector)
#   python tools/train.py configs/gslora_coco-tiny_forget.py
_base_ = [
    './coco_tiny/deformable-detr_coco-tiny.py',
    './_base_/forgetting.py',
    './_base_/methods/guided_gs_lora_coco.py',
    './_base_/protocols/coco_7x10.py',
]
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    _delete_=True,
    type='ForgettingDetector',
    detector=_base_.model,
    method=_base_.forgetting.method,
)
load_from = 'work_dirs/deformable-detr_coco-tiny/epoch_200.pth'
train_dataloader = dict(
    batch_size=_base_.forgetting.batch_size,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=1.0,
        redraw=False,
    ),
)
val_evaluator = dict(type='ForgettingCocoMetric')
test_evaluator = val_evaluator
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=_base_.forgetting.epochs_per_task,
    steps_per_task=_base_.forgetting.steps_per_task,
)
optim_wrapper = _base_.forgetting.optim_wrapper
param_scheduler = _base_.forgetting.param_scheduler
