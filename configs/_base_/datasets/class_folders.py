# Loaders for images in class folders, {train,test}/<class>/. A config on top gives data_root and
# transforms, and says which images validation gets.
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='FolderDataset', folder='train'),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='FolderDataset', classes_from='train', test_mode=True),
)
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='FolderDataset', folder='test', classes_from='train', test_mode=True),
)
val_evaluator = dict(type='ForgettingAccuracyMetric')
test_evaluator = val_evaluator
