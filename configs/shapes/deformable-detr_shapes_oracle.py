# The oracle of gslora_shapes_forget.py: the demo's detector trained in the same way without the
# classes of the three requests. What the audit compares with.
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
