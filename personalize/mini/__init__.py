"""The small text-to-image model that ships with driftlab: weights and subjects."""
