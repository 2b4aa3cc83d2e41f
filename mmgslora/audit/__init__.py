"""Is it really gone? Attacks on a model that forgot, beside its original and an oracle."""
