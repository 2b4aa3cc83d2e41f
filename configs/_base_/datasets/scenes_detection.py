# Eighty generated classes in COCO format, made like COCO: long-tailed, several objects per image,
# classes that share a colour or a shape, crowds. The folder is made on first use.
_base_ = ['./shapes_detection.py']
data_root = 'data/scenes/'
train_dataloader = dict(dataset=dict(type='ScenesDataset', data_root=data_root))
val_dataloader = dict(dataset=dict(type='ScenesDataset', data_root=data_root))
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_dataloader = dict(dataset=dict(type='ScenesDataset', data_root=data_root))
test_evaluator = dict(ann_file=data_root + 'annotations/test.json')
