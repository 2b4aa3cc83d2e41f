# torchvision's ViT-B/16, pre-trained on ImageNet, with a new head for any images in class folders,
# data/my_images/{train,test}/<class>/. The weights are downloaded once. What to change for other
# data: data_root and num_classes in vit_folder.py. For another model: name, weights, and the sizes
# and the normalisation below, which are those of torchvision's weights.transforms().
#   python tools/train.py configs/classification/vit-b16_folder.py
_base_ = './vit_folder.py'
model = dict(
    _delete_=True,
    type='TorchvisionClassifier',
    name='vit_b_16',
    weights='IMAGENET1K_V1',
    num_classes=_base_.num_classes,
)
train_transforms = [
    dict(type='RandomResizedCrop', size=224, scale=[0.6, 1.0]),
    dict(type='RandomHorizontalFlip'),
    *_base_.to_tensor,
]
test_transforms = [
    dict(type='Resize', size=256),
    dict(type='CenterCrop', size=224),
    *_base_.to_tensor,
]
train_dataloader = dict(batch_size=32, dataset=dict(transforms=train_transforms))
val_dataloader = dict(dataset=dict(transforms=test_transforms))
test_dataloader = dict(dataset=dict(transforms=test_transforms))
train_cfg = dict(max_epochs=5, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
