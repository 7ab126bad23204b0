"""Learning rates by step; an entry a file."""
