# Ten generated shape classes, one shape per image, in class folders; made on first use.
_base_ = './class_folders.py'
transforms = [
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25]),
]
made = dict(type='ShapeFolderDataset', data_root='data/shape_folders/', transforms=transforms)
train_dataloader = dict(batch_size=32, dataset=made)
val_dataloader = dict(dataset=dict(folder='val', **made))
test_dataloader = dict(dataset=made)
