# The authors' GS-LoRA for one task on faces: no sparsity in the first 20 epochs.
paper = dict(
    method=dict(
        type='GSLoRA',
        bound=110.0,
        beta=0.05,
        sparsity=dict(mode='penalty', alpha=0.01, warmup_epochs=20),
    )
)
