"""Training: of compressed layers, and of models built small from the start.

Here: `lost` (sparse plus low rank from scratch), `sparse` with its `masks`, and `pretrain`, the loop. Not here:
one-shot solvers (`solvers`), training against a dense model (`healing`).
"""
