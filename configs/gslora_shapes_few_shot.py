# gslora_shapes_forget.py with exactly four images of every class per task (k = 1, 2, 8, ...:
# --cfg-options train_dataloader.dataset.few_shot=8). The method is the demo's, untouched; flips in
# three directions, turns, sizes and colours, all that these shapes differ in, make more of so few
# images.
#   python tools/train.py configs/gslora_shapes_few_shot.py
# Expected: docs/results/few_shot.md; about 150 s a task on one thread of a slow machine.
_base_ = './gslora_shapes_forget.py'
train_dataloader = dict(
    dataset=dict(
        few_shot=4,
        redraw=True,  # so few vary in little else
        dataset=dict(
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(
                    type='RandomFlip',
                    prob=[0.25, 0.25, 0.25],
                    direction=['horizontal', 'vertical', 'diagonal'],
                ),
                dict(type='PhotoMetricDistortion'),
                dict(
                    type='RandomAffine',
                    max_rotate_degree=45.0,
                    scaling_ratio_range=(0.7, 1.3),
                    max_shear_degree=0.0,
                ),
                dict(type='FilterAnnotations', min_gt_bbox_wh=(4, 4)),
                dict(type='PackDetInputs'),
            ]
        ),
    )
)
