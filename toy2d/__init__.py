"""toy2d: a two-dimensional world in which the drift of a personalized diffusion model is computed exactly."""

__version__ = "0.1.0"
