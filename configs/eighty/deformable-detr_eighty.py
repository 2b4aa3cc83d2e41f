# The detector of the COCO protocol at a size that runs on two cores: six encoder and six decoder
# layers, 100 queries, eighty generated classes.
#   python tools/train.py configs/eighty/deformable-detr_eighty.py
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/scenes_detection.py',
    '../_base_/schedules/detr_adamw.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmgslora.datasets'])
model = dict(
    num_queries=100,
    encoder=dict(num_layers=6),
    decoder=dict(num_layers=6),
    bbox_head=dict(num_classes=80),
)
# More steps rather than larger ones: an hour is short for twelve layers.
train_cfg = dict(max_epochs=9, val_interval=9)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=7e-4))
