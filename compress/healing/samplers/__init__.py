"""Which windows of the text are trained on; an entry a file."""
