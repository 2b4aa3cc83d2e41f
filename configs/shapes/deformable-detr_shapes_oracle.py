# The oracle of gslora_shapes_forget.py: the demo's detector trained from the start without the
# classes of the three requests. What the audit compares with. Twice the epochs, for a third of the
# images shows nothing else and every third object is unlabelled.
#   python tools/train.py configs/shapes/deformable-detr_shapes_oracle.py
_base_ = ['./deformable-detr_shapes.py', '../_base_/protocols/shapes_3x2.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='WithoutClasses',
        dataset=_base_.train_dataloader.dataset,
        classes=_base_.protocol.tasks,
    )
)
train_cfg = dict(max_epochs=24, val_interval=24)
