# The authors' GS-LoRA++ for one task on faces.
_base_ = './gs_lora_face_single_step.py'
paper = dict(
    method=dict(
        type='GSLoRAPlusPlus',
        prototype_weight=0.005,
        feature_pull_weight=0.0,
        prototype_bound=18.0,
        prototypes='embeddings',
    )
)
