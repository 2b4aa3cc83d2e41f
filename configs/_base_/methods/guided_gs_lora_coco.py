# Our method for COCO: method, learning rate, schedule and batch of the demo; for ten classes at a
# time twice the steps of two, and what stays is held more firmly (docs/your_data.md has the rules).
# Several processes share the batch: with eight GPUs batch_size=2.
# A config takes it from _base_.forgetting and changes to the authors' by another base.
forgetting = dict(
    method=dict(type='GuidedGSLoRA', distill_weight=14),  # ten classes at a time
    epochs_per_task=6,
    steps_per_task=432,
    data_ratio=0.1,
    batch_size=16,  # 8 images of each view
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=2e-2, weight_decay=1e-4),
        clip_grad=dict(max_norm=0.1, norm_type=2),
    ),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
        dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
    ],
    auto_scale_lr=dict(enable=False, base_batch_size=16),  # --auto-scale-lr enables it
)
