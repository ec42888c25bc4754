"""Trained weights in the formats that other programs open, and back from them."""
