"""Text: between characters and token ids."""
