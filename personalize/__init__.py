"""personalize: one trainer, five objectives, on Stable Diffusion's real classes."""
