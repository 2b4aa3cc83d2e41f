# The oracle of gslora_classification_forget.py: the demo's classifier trained from the start
# without the classes of the requests. What the audit compares with. Twice the epochs, for six of
# ten images are gone.
#   python tools/train.py configs/classification/vit_shapes_oracle.py
_base_ = ['./vit_shapes.py', '../_base_/protocols/shapes_3x2.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='WithoutClasses',
        dataset=_base_.train_dataloader.dataset,
        classes=_base_.protocol.tasks,
    )
)
train_cfg = dict(max_epochs=24, val_interval=24)
