# CASIA-Face100 in one folder per identity: data/casia_face100/{train,test}/<identity>/, 112 x
# 112. Pixels in [0, 1] and no augmentation, as the authors'. There is no validation part: the
# test images are looked at after every task, nothing is chosen on them.
transforms = [
    dict(type='Resize', size=(112, 112)),
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
]
dataset = dict(type='FolderDataset', data_root='data/casia_face100/', transforms=transforms)
train_dataloader = dict(
    batch_size=480,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(folder='train', **dataset),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(folder='test', classes_from='train', test_mode=True, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ForgettingAccuracyMetric', verification=True)
test_evaluator = val_evaluator
