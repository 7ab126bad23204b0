"""GGUF: what llama.cpp reads.

Here: where each tensor of a model goes in a GGUF file (`placement`), what its metadata says (`metadata`, `tokenizer`),
and the form that the pipeline writes through (`exporter`). The families that llama.cpp knows are data (`architectures`).
The bytes of the file are `compress.checkpoint.gguf`'s. Add a family: an entry in `architectures`.
"""
