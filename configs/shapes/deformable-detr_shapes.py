# The demo's detector: a small Deformable DETR on ten generated shape classes.
#   python tools/train.py configs/shapes/deformable-detr_shapes.py
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/detr_adamw.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmgslora.datasets'])
