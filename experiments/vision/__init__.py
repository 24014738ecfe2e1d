"""Models that see, trained on pictures that are made on the spot."""
