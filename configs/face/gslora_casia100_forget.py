# Our method on CASIA-Face100: the authors' four tasks of twenty identities; our method with
# the authors' data, epochs and learning rate.
#   python tools/train.py configs/face/face-transformer_casia100.py   (once: the recogniser)
#   python tools/train.py configs/face/gslora_casia100_forget.py
# Data under data/casia_face100, see ../_base_/datasets/casia_face100.py. Awaits a run. The authors'
# accuracy, which keeps the margin at test time:
#   --cfg-options test_evaluator.margin_at_test=0.35
_base_ = [
    './face-transformer_casia100.py',
    '../_base_/forgetting.py',
    '../_base_/methods/guided_gs_lora_softmax.py',
    '../_base_/protocols/hundred_4x20.py',
]
model = dict(
    _delete_=True,
    type='ForgettingClassifier',
    classifier=_base_.model,
    method=_base_.guided,
)
load_from = 'work_dirs/face-transformer_casia100/epoch_1200.pth'
train_dataloader = dict(
    batch_size=96,
    sampler=dict(_delete_=True, type='PairedSampler'),
    dataset=dict(
        _delete_=True,
        type='ForgettingViews',
        dataset=_base_.train_dataloader.dataset,
        data_ratio=0.1,
    ),
)
train_cfg = dict(
    _delete_=True,
    type='ContinualForgettingLoop',
    protocol=_base_.protocol,
    epochs_per_task=100,
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, eta_min=1e-5, convert_to_iter_based=True),
]
