# Olivetti faces, 40 persons, in one folder per identity: data/olivetti/{train,test}/<identity>/,
# 64 x 64, grey. Two of the seven training images of a person are held out for validation.
train_transforms = [
    dict(type='RandomHorizontalFlip'),
    dict(type='RandomAffine', degrees=8, translate=[0.06, 0.06], scale=[0.9, 1.1]),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3),
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2]),
]
test_transforms = train_transforms[3:]
dataset = dict(type='FolderDataset', data_root='data/olivetti/')
split = dict(train=5, val=2)
train_dataloader = dict(
    batch_size=40,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(folder='train', split=split, transforms=train_transforms, **dataset),
)
val_dataloader = dict(
    batch_size=80,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        folder='train',
        split=split,
        part='val',
        transforms=test_transforms,
        test_mode=True,
        **dataset,
    ),
)
test_dataloader = dict(
    batch_size=80,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        folder='test', classes_from='train', transforms=test_transforms, test_mode=True, **dataset
    ),
)
val_evaluator = dict(type='ForgettingAccuracyMetric', verification=True)
test_evaluator = val_evaluator
