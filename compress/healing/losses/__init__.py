"""Losses on the logits of student and teacher; an entry a file."""
