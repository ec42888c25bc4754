"""A two-dimensional world in which a personalized diffusion model's drift can be computed."""

__version__ = "0.1.0"
