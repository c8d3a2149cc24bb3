"""How probable a model finds a given answer: the estimator of masked diffusion models, run through an engine."""
