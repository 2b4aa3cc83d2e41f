# The authors' detection recipe at the time of CVPR 2024: their beta for each of seven tasks, bound
# 15, alpha 3e-4; 30 epochs on 10 % of the images, AdamW at a constant rate.
forgetting_paper = dict(
    method=dict(type='GSLoRA', recipe='paper'),
    epochs_per_task=30,
    data_ratio=0.1,
    batch_size=4,  # per GPU: 2 images of each view
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=3e-4, weight_decay=1e-4),
        clip_grad=dict(max_norm=0.1, norm_type=2),
    ),
    param_scheduler=[],
    # The rate belongs to their 8 GPUs with 2 images of each view; fewer GPUs get a lower one.
    auto_scale_lr=dict(enable=True, base_batch_size=32),
)
