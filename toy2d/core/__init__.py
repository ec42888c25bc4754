"""The science, once: schedule, objectives, drift, samplers and likelihood, for tensors of any shape."""
