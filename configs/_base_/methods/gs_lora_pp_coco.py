# The authors' GS-LoRA++ for detection, their journal script: the rows of the class head as
# prototypes; 8 GPUs with 4 images of each view.
_base_ = './gs_lora_coco.py'
paper = dict(
    method=dict(
        type='GSLoRAPlusPlus',
        beta=[0.15, 0.15, 0.35, 0.6, 0.15, 0.2, 0.2],
        prototype_weight=0.005,
        feature_pull_weight=0.0,
        prototype_bound=18.0,
        prototypes='head',
    ),
    batch_size=8,
    auto_scale_lr=dict(base_batch_size=64),
)
