"""A diffusers pipeline, opened: families, loading, and random pipelines for trying things."""
