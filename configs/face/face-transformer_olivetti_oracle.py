# The oracle of gslora_olivetti_forget.py: its recogniser trained from the start without the
# classes of the requests. What the audit compares with.
#   python tools/train.py configs/face/face-transformer_olivetti_oracle.py
_base_ = ['./face-transformer_olivetti.py', '../_base_/protocols/olivetti_4x5.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='WithoutClasses',
        dataset=_base_.train_dataloader.dataset,
        classes=_base_.protocol.tasks,
    )
)
