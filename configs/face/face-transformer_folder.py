# A Face Transformer with CosFace on any aligned faces in one folder per identity,
# data/my_faces/{train,test}/<identity>/, from nothing.
#   python tools/train.py configs/face/face-transformer_folder.py
_base_ = '../classification/vit_folder.py'
data_root = 'data/my_faces/'
num_classes = 100
model = dict(
    backbone=dict(_delete_=True, type='FaceTransformer', image_size=_base_.size),
    head=dict(_delete_=True, type='CosineMarginHead', embed_dims=512, num_classes=num_classes),
)
test_transforms = [dict(type='Resize', size=(_base_.size, _base_.size)), *_base_.to_tensor]
train_transforms = [dict(type='RandomHorizontalFlip'), *test_transforms]
train_dataloader = dict(dataset=dict(data_root=data_root, transforms=train_transforms))
val_dataloader = dict(dataset=dict(data_root=data_root, transforms=test_transforms))
test_dataloader = dict(dataset=dict(data_root=data_root, transforms=test_transforms))
val_evaluator = dict(verification=True)
test_evaluator = val_evaluator
