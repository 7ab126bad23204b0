"""Terms on the trained tensors that are added to the loss; an entry a file."""
