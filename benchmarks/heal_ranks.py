"""What is left of low-rank weights behind a cut: ``python -m benchmarks.heal_ranks``.

Two factors of 60% of the embedded model's parameters are healed as ``factors`` and as ``nested``, written, loaded, cut to
shares of their ranks and measured: KL(dense ‖ cut) by token on held-out text, in fp32. Writes
``benchmarks/results/heal-ranks.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, machine_record
from benchmarks.heal import BASES
from benchmarks.heal_entries import base_folder, dense_model, measured
from compress import Recipe, compress, heal, load
from compress.assets import embedded_model, embedded_text
from compress.evaluation.windows import read_documents, text_windows
from compress.runtime.ranks import cut_ranks
from compress.text.tokenize import load_tokenizer

PATH = RESULTS / "heal-ranks.json"


def main() -> None:
    """Heal both ways and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--shares", type=float, nargs="*", default=[1.0, 0.75, 0.5])
    parser.add_argument("--work", help="a folder whose compressed base is used again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    documents = read_documents(embedded_text("heldout"))
    text = text_windows(documents, load_tokenizer(embedded_model()), length=128, limit=32)
    data = str(embedded_text("calibration"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = base_folder(Path(options.work or folder), "lowrank60", 0)
        if not out.exists():
            compress(
                embedded_model(),
                Recipe.parse(BASES["lowrank60"]),
                out,
                data=data,
                samples=32,
                length=128,
                device="cpu",
            )
        folders = {"not healed": out}
        for name in ("factors", "nested"):
            folders[name] = heal(
                out,
                source=embedded_model(),
                data=data,
                train=["norms", name],
                settings={
                    "tokens": options.tokens,
                    "rate": options.rate,
                    "batch": 8,
                    "length": 128,
                    "holdout": 8,
                    "evaluations": 2,
                },
                new=Path(folder) / name,
                device="cpu",
                dtype="fp32",
            ).out
        for name, one in folders.items():
            for share in options.shares:
                model = load(one, dtype=torch.float32, device="cpu")
                cut_ranks(model, share)
                rows.append({"healed": name, "share": share, "kl": measured(dense_model(), model, text)})
                print(json.dumps(rows[-1]), flush=True)
    amount = {"tokens": options.tokens, "rate": options.rate}
    PATH.write_text(
        json.dumps({"machine": machine_record(), "amount": amount, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
