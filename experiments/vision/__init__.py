"""Models that see, trained from nothing in minutes."""
