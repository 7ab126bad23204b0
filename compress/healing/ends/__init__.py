"""Which of the iterates is kept; an entry a file."""
