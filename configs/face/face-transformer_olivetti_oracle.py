# The oracle of gslora_olivetti_forget.py: its recogniser trained from the start without the
# classes of the requests. What the audit compares with.
#   python tools/train.py configs/face/face-transformer_olivetti_oracle.py
_base_ = ['./face-transformer_olivetti.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='WithoutClasses',
        dataset=_base_.train_dataloader.dataset,
        # Those that ../_base_/protocols/olivetti_4x5.py takes off the end.
        classes=[f's{number:02d}' for number in range(21, 41)],
    )
)
