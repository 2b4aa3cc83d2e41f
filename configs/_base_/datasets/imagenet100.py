# ImageNet100 in class folders (wnids): data/imagenet100/{train,test}/<wnid>/, and the list of all
# 1000 wnids in data/imagenet100/imagenet_folder_names.txt. Transforms as the authors', also when
# training. There is no validation part: the test images are looked at after every task, nothing is
# chosen on them.
transforms = [
    dict(type='Resize', size=256),
    dict(type='CenterCrop', size=224),
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
]
# Once all files have been found whole, verify='none' saves reading them at every start.
dataset = dict(
    type='FolderDataset', data_root='data/imagenet100/', transforms=transforms, verify='all'
)
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(folder='train', **dataset),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(folder='test', classes_from='train', test_mode=True, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ForgettingAccuracyMetric')
test_evaluator = val_evaluator
