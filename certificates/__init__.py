"""Certificates: our models against transformers', published checkpoints in and out. See README.md."""
