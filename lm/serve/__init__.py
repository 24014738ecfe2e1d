"""The HTTP API of a model and its page, and conversations in a terminal."""
