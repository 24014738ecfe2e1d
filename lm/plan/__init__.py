"""Plans: memory, FLOPs, communication and time of a training step on chips that are not available, from their
compiler."""
