# The authors' GS-LoRA++ for four tasks of twenty faces where five identities have no image: no
# sparsity in the first 30 epochs of a task.
_base_ = './gs_lora_pp_face.py'
paper = dict(
    method=dict(
        beta=[0.14, 0.14, 0.2, 0.15],
        prototype_weight=3e-4,
        sparsity=dict(alpha=0.015, warmup_epochs=30),
    )
)
