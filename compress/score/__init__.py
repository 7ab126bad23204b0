"""Scores: how much an error in each place of a weight costs."""
