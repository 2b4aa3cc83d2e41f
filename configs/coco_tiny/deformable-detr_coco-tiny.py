# A small Deformable DETR that learns a few images of COCO by heart: 80 images with 705 objects of
# all 80 classes, data/coco_tiny in COCO's own layout. Measured on the learned images: what it says
# of others is worth nothing, what forgetting does to what it knows is.
#   python tools/train.py configs/coco_tiny/deformable-detr_coco-tiny.py
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/schedules/detr_adamw.py',
    '../_base_/default_runtime.py',
]
model = dict(num_queries=100, bbox_head=dict(num_classes=80))
data_root = 'data/coco_tiny/'
annotations = 'annotations/instances_train2017.json'
load = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 120), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
]
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
dataset = dict(
    type='CocoDataset',
    data_root=data_root,
    ann_file=annotations,
    data_prefix=dict(img='train2017/'),
    pipeline=[*load, dict(type='PackDetInputs', meta_keys=meta_keys)],
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(dataset, pipeline=[load[0], load[2], load[1], dict(type='PackDetInputs')]),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + annotations, metric='bbox', classwise=True
)
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=200, val_interval=50)
