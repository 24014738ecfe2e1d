"""Models that see, trained on images that are made on the spot."""
