"""Drift at full scale: path KL, delta eps, delta theta and the Fisher diagonal."""
