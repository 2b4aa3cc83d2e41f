# CIFAR-10, or a part of it, in class folders: data/cifar10_mini/{train,test}/<class>/. One training
# image in ten is held out for validation.
train_transforms = [
    dict(type='RandomCrop', size=32, padding=4, padding_mode='reflect'),
    dict(type='RandomHorizontalFlip'),
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26]),
]
test_transforms = train_transforms[2:]
dataset = dict(type='FolderDataset', data_root='data/cifar10_mini/')
split = dict(train=9, val=1)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(folder='train', split=split, transforms=train_transforms, **dataset),
)
val_dataloader = dict(
    batch_size=100,
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
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        folder='test', classes_from='train', transforms=test_transforms, test_mode=True, **dataset
    ),
)
val_evaluator = dict(type='ForgettingAccuracyMetric')
test_evaluator = val_evaluator
