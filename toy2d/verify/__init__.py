"""Verification of a finished run: the rows of every theorem, their table, and their power."""
