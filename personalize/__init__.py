"""personalize: one trainer, five objectives, on Stable Diffusion's real classes; lectures/package_map.md is its map."""
