# The oracle of gslora_face_forget.py: the demo's recogniser trained from the start without the
# classes of the requests. What the audit compares with. Twice the
# epochs, for half of the images are gone.
#   python tools/train.py configs/face/face-transformer_generated_oracle.py
_base_ = ['./face-transformer_generated.py', '../_base_/protocols/faces_3x4.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='WithoutClasses',
        dataset=_base_.train_dataloader.dataset,
        classes=_base_.protocol.tasks,
    )
)
train_cfg = dict(max_epochs=28, val_interval=28)
