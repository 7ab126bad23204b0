"""Edits of a model's shape before its weights are compressed."""
