# The authors' GS-LoRA++ for four tasks of twenty ImageNet100 classes.
_base_ = './gs_lora_imagenet100.py'
paper = dict(
    method=dict(
        type='GSLoRAPlusPlus',
        prototype_weight=0.05,
        feature_pull_weight=0.0,
        prototype_bound=18.0,
        prototypes='embeddings',
    )
)
