"""The structures that a compressed weight may have.

Here: `base` (the contract), `grids`, `sparse`, `low_rank`. Not here: bytes (`compress_kernels.layouts`) and search
(`solvers`).
"""
