"""Checkpoints that are quantized already, read as dense ones.

Here: a reader for every stored form (`float8`, `microscaled`, `compressed_tensors`, `gptq`, `awq`, `mlx`, `bitsandbytes`) and
what they share (`overlay`, `values`). Not here: our own native form, which needs the model (`formats.dense_source`), and
weights that stay packed while a model runs (`formats.read`). Add a form: a function that returns a `Reading`, named in
`read.READERS`.
"""
