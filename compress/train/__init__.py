"""Training: of compressed layers, and of models built small from the start.

Here: `lost` (sparse plus low rank from scratch). Not here: one-shot solvers (`solvers`).
"""
