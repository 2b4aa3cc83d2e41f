# A small Deformable DETR on the BCCD blood cells (364 photographs of 640 x 480, three classes, COCO
# format under data/bccd), trained from nothing on two CPU cores.
#   python tools/train.py configs/bccd/deformable-detr_bccd.py
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/schedules/detr_adamw.py',
    '../_base_/default_runtime.py',
]
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
model = dict(num_queries=60, bbox_head=dict(num_classes=3))
size = (224, 168)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical']),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(
    type='CocoDataset',
    data_root='data/bccd/',
    metainfo=metainfo,
    data_prefix=dict(img='images/'),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='annotations/train.json', pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        ann_file='annotations/val.json', pipeline=test_pipeline, test_mode=True, **dataset
    ),
)
test_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        ann_file='annotations/test.json', pipeline=test_pipeline, test_mode=True, **dataset
    ),
)
val_evaluator = dict(
    type='CocoMetric', ann_file='data/bccd/annotations/val.json', metric='bbox', classwise=True
)
test_evaluator = dict(
    type='CocoMetric', ann_file='data/bccd/annotations/test.json', metric='bbox', classwise=True
)
train_cfg = dict(max_epochs=60, val_interval=20)
