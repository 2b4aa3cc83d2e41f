# Our method for COCO-sized data, without a hand-set beta per task.
# A config takes it from _base_.forgetting and changes to the authors' by another base.
forgetting = dict(
    method=dict(type='GuidedGSLoRA'),
    epochs_per_task=30,
    data_ratio=0.1,
    batch_size=4,  # per GPU: 2 images of each view
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=3e-4, weight_decay=1e-4),
        clip_grad=dict(max_norm=0.1, norm_type=2),
    ),
    param_scheduler=[],
    auto_scale_lr=dict(enable=False, base_batch_size=32),  # --auto-scale-lr enables it
)
