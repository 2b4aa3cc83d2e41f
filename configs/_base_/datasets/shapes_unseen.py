# Where an audit has no oracle: classes that the demo's detector has never seen, under the labels of
# the six that the requests forget; the others are in their places.
#   python tools/audit.py WORK_DIR --unseen configs/_base_/datasets/shapes_unseen.py
_base_ = ['./shapes_detection.py']
made = dict(
    type='ShapesDataset',
    data_root='data/shapes_unseen/',
    generate=dict(
        train=1000,
        val=1,
        test=300,
        shapes=['pentagon', 'kite', 'semicircle', 'hexagon', 'frame']
        + ['cross', 'tee', 'crescent', 'bolt', 'heart'],
    ),
    pipeline=_base_.test_pipeline,
)
unseen = dict(
    train=dict(ann_file='annotations/train.json', data_prefix=dict(img='train/'), **made),
    held_out=dict(ann_file='annotations/test.json', data_prefix=dict(img='test/'), **made),
)
