"""Schedule, objectives, drift, samplers and likelihood, for tensors of any shape."""
