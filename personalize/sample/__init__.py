"""Pictures out: samplers, class images, galleries and validation grids."""
