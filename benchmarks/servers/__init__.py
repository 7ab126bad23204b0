"""Checkpoints in the programs that people run them with.

- :mod:`benchmarks.servers.matrix`: every shipped recipe and format in every server that claims to read it.
- :mod:`benchmarks.servers.gguf_bars`: our GGUF files beside those of llama.cpp's quantizer.
- :mod:`benchmarks.servers.gguf_models`: tiny models of every GGUF architecture, logits of llama.cpp against transformers.
- :mod:`benchmarks.servers.gguf_tokenizers`: token ids of llama.cpp against transformers.

Servers live in environments of their own. Their interpreters are arguments, and ``runners/`` holds what they run.
"""
