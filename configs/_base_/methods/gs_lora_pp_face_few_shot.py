# The authors' GS-LoRA++ for four tasks of twenty faces with four images of each.
_base_ = './gs_lora_pp_face.py'
paper = dict(
    method=dict(
        beta=[0.3, 0.4, 0.28, 0.2],
        prototype_weight=[0.015, 0.06, 0.025, 0.012],
        prototype_bound=50.0,
    )
)
