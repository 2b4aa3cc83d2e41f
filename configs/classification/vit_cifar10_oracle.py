# The oracle of gslora_cifar10_forget.py: its classifier trained from the start without the
# classes of the requests. What the audit compares with.
#   python tools/train.py configs/classification/vit_cifar10_oracle.py
_base_ = ['./vit_cifar10.py', '../_base_/protocols/cifar10_3x2.py']
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='WithoutClasses',
        dataset=_base_.train_dataloader.dataset,
        classes=_base_.protocol.tasks,
    )
)
