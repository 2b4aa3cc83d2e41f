# ImageNet100 in class folders (wnids): data/imagenet100/{train,test}/<wnid>/, and the list of all
# 1000 wnids in data/imagenet100/imagenet_folder_names.txt. Transforms as the authors', also when
# training. There is no validation part: the test images are looked at after every task, nothing is
# chosen on them.
_base_ = './class_folders.py'
seen = dict(
    data_root='data/imagenet100/',
    transforms=[
        dict(type='Resize', size=256),
        dict(type='CenterCrop', size=224),
        dict(type='ToImage'),
        dict(type='ToDtype', dtype='float32', scale=True),
        dict(type='Normalize', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ],
    # Once all files have been found whole, verify='none' saves reading them at every start.
    verify='all',
)
train_dataloader = dict(num_workers=8, dataset=seen)
val_dataloader = dict(batch_size=128, num_workers=8, dataset=dict(folder='test', **seen))
test_dataloader = val_dataloader
