"""Training: of compressed layers, and of models built small from the start.

Here: `layers` that learn small, `lost` for loops of one's own, `sparse` with its `masks`, `pretrain`, the loop, and `write`.
Not here: one-shot solvers (`solvers`), training against a dense model (`healing`).
"""
