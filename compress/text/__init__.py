"""Text files as documents and as tokens, read in one way for calibration and for evaluation.

Here: documents of a file (`documents`, `records`), their tokens (`tokenize`), what a model takes (`limits`). Not here: which
windows are drawn (`calibrate.corpus`, `evaluation.windows`). Add a form of record: a function in `records`.
"""
