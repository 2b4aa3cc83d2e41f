# CIFAR-10, or a part of it, in class folders: data/cifar10_mini/{train,test}/<class>/. One training
# image in ten is held out for validation.
_base_ = './class_folders.py'
train_transforms = [
    dict(type='RandomCrop', size=32, padding=4, padding_mode='reflect'),
    dict(type='RandomHorizontalFlip'),
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26]),
]
data_root = 'data/cifar10_mini/'
split = dict(train=9, val=1)
seen = dict(data_root=data_root, transforms=train_transforms[2:])
train_dataloader = dict(dataset=dict(data_root=data_root, split=split, transforms=train_transforms))
val_dataloader = dict(dataset=dict(folder='train', split=split, part='val', **seen))
test_dataloader = dict(dataset=seen)
