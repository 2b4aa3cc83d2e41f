# A Vision Transformer on any images in class folders, data/my_images/{train,test}/<class>/,
# from nothing. What to change for other data: data_root, num_classes, and the size of the
# images.
#   python tools/train.py configs/classification/vit_folder.py
_base_ = [
    '../_base_/datasets/class_folders.py',
    '../_base_/schedules/vit_adamw.py',
    '../_base_/classifier_runtime.py',
]
custom_imports = dict(imports=['mmgslora.register'])
data_root = 'data/my_images/'
num_classes = 10
size = 64
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        image_size=size,
        patch_size=8,
        num_layers=6,
        num_heads=4,
        hidden_dim=192,
        mlp_dim=384,
    ),
    head=dict(type='LinearHead', embed_dims=192, num_classes=num_classes),
)
to_tensor = [
    dict(type='ToImage'),
    dict(type='ToDtype', dtype='float32', scale=True),
    dict(type='Normalize', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
]
train_transforms = [
    dict(type='RandomResizedCrop', size=size, scale=[0.6, 1.0]),
    dict(type='RandomHorizontalFlip'),
    *to_tensor,
]
test_transforms = [dict(type='Resize', size=size), dict(type='CenterCrop', size=size), *to_tensor]
# One training image in ten is held out for validation; with a folder of its own for that, give
# folder='val', classes_from='train' and no split.
split = dict(train=9, val=1)
seen = dict(data_root=data_root, transforms=test_transforms)
train_dataloader = dict(
    num_workers=2,
    dataset=dict(data_root=data_root, split=split, transforms=train_transforms),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    dataset=dict(folder='train', split=split, part='val', **seen),
)
test_dataloader = dict(batch_size=128, num_workers=2, dataset=seen)
train_cfg = dict(max_epochs=100, val_interval=10)
