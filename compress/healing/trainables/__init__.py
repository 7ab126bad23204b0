"""What may be trained of a compressed checkpoint; an entry a file."""
