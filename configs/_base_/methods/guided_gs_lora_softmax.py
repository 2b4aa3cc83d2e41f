# Our method for classifiers and face recognisers, which have a softmax; embeddings are not moved.
guided = dict(
    type='GuidedGSLoRA', forget_loss='odds', prototype_weight=0.0, feature_distill_weight=0.0
)
