# Where an audit has no oracle: shapes that the demo's classifier has never seen, under the labels
# of the six that the requests forget; the others are in their places.
#   python tools/audit.py WORK_DIR --unseen configs/_base_/datasets/shape_folders_unseen.py
_base_ = ['./shape_folders.py']
made = dict(
    type='ShapeFolderDataset',
    data_root='data/shape_folders_unseen/',
    generate=dict(
        train=200,
        val=1,
        test=50,
        shapes=['bolt', 'crescent', 'cross', 'frame', 'heart']
        + ['hexagon', 'kite', 'pentagon', 'semicircle', 'tee'],
    ),
    # For arrow, circle, ring, square, star and triangle.
    classes=['bolt', 'frame', 'crescent', 'cross', 'heart']
    + ['hexagon', 'kite', 'pentagon', 'semicircle', 'tee'],
    transforms=_base_.transforms,
)
unseen = dict(train=dict(folder='train', **made), held_out=dict(folder='test', **made))
