"""Figures of a toy run, drawn from its files."""
