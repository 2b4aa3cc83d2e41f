# The authors' GS-LoRA for four tasks of twenty ImageNet100 classes.
paper = dict(
    method=dict(
        type='GSLoRA',
        bound=105.0,
        beta=[0.2, 0.25, 0.25, 0.25],
        sparsity=dict(mode='penalty', alpha=1e-4),
    )
)
