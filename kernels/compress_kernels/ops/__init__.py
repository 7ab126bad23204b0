"""Operators: `y = x Wᵀ` for packed `W`, one folder each, and what they share (`dispatch`, `epilogue`, `triton`, `cpu`,
`tuning`).

Not here: how a weight lies on disk (`layouts`). Add one: a folder as `packed_matmul`, a line in `table`.
"""
