"""What a model is made of: its blocks, the weights to compress, and where each lies on disk.

Here: `skeleton` (a model on meta, blocks loaded and released), `views` (a weight as `[out, in]`). No model family is
named here.
"""
