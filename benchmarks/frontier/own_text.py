"""Text that a model writes itself: ``python -m benchmarks.frontier.own_text MODEL --prompts TEXT --tokens 6000000 -o FILE``.

Windows begin at random places of the text, keep their first tokens and go on as the model does, sampled at temperature 1.
They are written as ``input_ids`` in a jsonl file, and behind them the text itself, so that the end of the file, which healing
is judged on, is real. Texts named by ``--real`` stand between them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from compress.calibrate.corpus import load_tokens
from compress.formats.dense_source import open_dense
from compress.healing.samplers.self_written import continued
from compress.runtime.load import load
from compress.text.tokenize import load_tokenizer


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", required=True, help="text that the windows begin in")
    parser.add_argument("--real", nargs="*", default=[], help="texts that stand behind what was written")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--together", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--out", type=Path, required=True)
    asked = parser.parse_args()
    source = open_dense(asked.model)
    tokenizer = load_tokenizer(source.path)
    samples = -(-asked.tokens // asked.length)
    begin = load_tokens(asked.prompts, tokenizer, samples=samples, length=asked.length, seed=asked.seed)
    model = load(source.path, device=asked.device)
    written = continued(model, begin.to(torch.int64), asked.prompt, asked.seed, asked.together)
    with asked.out.open("w", encoding="utf-8") as file:
        for row in written.tolist():
            file.write(json.dumps({"input_ids": row}) + "\n")
        for name in (*asked.real, asked.prompts):
            file.write(json.dumps({"text": Path(name).read_text(encoding="utf-8")}) + "\n")
    print(f"{written.numel():,} tokens written, {asked.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
