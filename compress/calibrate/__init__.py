"""From text to what each weight sees: tokens, the inputs of every block, and statistics over them."""

from __future__ import annotations

from compress.calibrate.corpus import Corpus, load_corpus, load_tokens
from compress.calibrate.stream import BlockStream

__all__ = ["BlockStream", "Corpus", "load_corpus", "load_tokens"]
