"""Compressed checkpoints as running models.

Here: `load`, the swap to packed layers, transformers' loader, `generate`, `bench`. Not here: the operators
(`compress_kernels`).
"""
