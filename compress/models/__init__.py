"""What a model is made of: its blocks, the weights to compress, and where each of them lies on disk."""
