"""Scores of pictures: the judging networks, metrics, rows and their means."""
