# Our method for classifiers and face recognisers: a softmax has no background to rank against, so
# the hinge is on the odds of the classes that must be gone.
guided = dict(
    type='GuidedGSLoRA',
    forget_loss='odds',
    beta=0.2,
    distill_weight=1.0,
    background_weight=0.0,
)
