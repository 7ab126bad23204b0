"""Filters: how much each position counts in the loss; an entry a file."""
