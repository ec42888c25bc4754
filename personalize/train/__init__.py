"""One training loop for every objective, and the run folder around it."""
