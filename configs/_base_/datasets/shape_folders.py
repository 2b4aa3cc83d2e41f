# Ten generated shape classes, one shape per picture, in class folders; made on first use.
transforms = [
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25]),
]
dataset = dict(type='ShapeFolderDataset', data_root='data/shape_folders/', transforms=transforms)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(folder='train', **dataset),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(folder='val', classes_from='train', test_mode=True, **dataset),
)
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(folder='test', classes_from='train', test_mode=True, **dataset),
)
val_evaluator = dict(type='ForgettingAccuracyMetric')
test_evaluator = val_evaluator
