"""What trains: weights, adapters or new words, and how far each has moved from the base."""
