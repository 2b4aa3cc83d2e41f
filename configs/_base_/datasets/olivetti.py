# Olivetti faces, 40 persons, in one folder per identity: data/olivetti/{train,test}/<identity>/,
# 64 x 64, grey. Two of the seven training images of a person are held out for validation.
_base_ = './class_folders.py'
train_transforms = [
    dict(type='RandomHorizontalFlip'),
    dict(type='RandomAffine', degrees=8, translate=[0.06, 0.06], scale=[0.9, 1.1]),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3),
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2]),
]
data_root = 'data/olivetti/'
split = dict(train=5, val=2)
seen = dict(data_root=data_root, transforms=train_transforms[3:])
train_dataloader = dict(
    batch_size=40,
    dataset=dict(data_root=data_root, split=split, transforms=train_transforms),
)
val_dataloader = dict(batch_size=80, dataset=dict(folder='train', split=split, part='val', **seen))
test_dataloader = dict(batch_size=80, dataset=seen)
val_evaluator = dict(verification=True)
test_evaluator = val_evaluator
