# The authors' GS-LoRA for four tasks of twenty faces. (Batches, epochs and learning rate of the
# CASIA-Face100 and ImageNet100 configs are theirs whatever the method.)
paper = dict(
    method=dict(
        type='GSLoRA',
        bound=105.0,
        beta=[0.2, 0.25, 0.25, 0.2],
        sparsity=dict(mode='penalty', alpha=1e-4),
    )
)
