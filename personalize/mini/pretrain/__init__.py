"""How the mini base was made: its world, its parts and their training."""
