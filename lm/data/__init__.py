"""Data: from files to batches. source (documents) -> store (tokens) -> pack (rows) -> mixture (which rows) -> objective
(inputs and targets) -> loader (batches)."""
