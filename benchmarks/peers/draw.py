"""``python draw.py MODEL TEXT SAMPLES LENGTH SEED OUT``: saves the windows that ``compress run`` draws."""

from __future__ import annotations

import sys

import torch
from transformers import AutoTokenizer

from compress.calibrate.corpus import load_tokens


def main() -> None:
    """Draw and save int64 ``[samples, length]``."""
    model, text, samples, length, seed, out = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.save(load_tokens(text, tokenizer, samples=int(samples), length=int(length), seed=int(seed)), out)


if __name__ == "__main__":
    main()
