"""Compressed checkpoints as running models."""
