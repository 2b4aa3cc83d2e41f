# The authors' GS-LoRA++ for four tasks of twenty faces.
_base_ = './gs_lora_face.py'
paper = dict(
    method=dict(
        type='GSLoRAPlusPlus',
        prototype_weight=0.01,
        feature_pull_weight=0.0,
        prototype_bound=18.0,
        prototypes='embeddings',
    )
)
