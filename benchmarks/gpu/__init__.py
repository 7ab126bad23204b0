"""What a GPU makes of the kernels and of whole runs; ``python -m benchmarks.gpu --help``.

Here: correctness, timings, tuning, end-to-end runs and decoding on one device. Add a part: a module with ``items``, named in
:data:`benchmarks.gpu.parts.PARTS`.
"""
