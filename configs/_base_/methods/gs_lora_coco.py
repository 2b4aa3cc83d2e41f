# The authors' GS-LoRA for detection at the time of CVPR 2024: their beta for each of seven tasks,
# bound 15, alpha 3e-4; 30 epochs on 10 % of the images, AdamW at a constant rate.
paper = dict(
    method=dict(
        type='GSLoRA',
        bound=15.0,
        beta=[0.015, 0.03, 0.14, 0.13, 0.13, 0.15, 0.15],
        sparsity=dict(mode='penalty', alpha=3e-4),
    ),
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
