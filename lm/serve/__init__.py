"""The HTTP API of a model, and conversations in a terminal."""
