"""The shipped recipes that heal, on text of two domains: ``python -m benchmarks.heal_foreign --foreign TEXT``.

The embedded model is compressed by each recipe without its ``heal`` and then healed by it on its own calibration text, with
fewer tokens. KL(dense ‖ compressed) by token, in fp32, on held-out text of the same kind and on one of another domain, before
and after. Writes ``benchmarks/results/heal-foreign.json`` after every recipe and goes on with what stands there; ``--write``
puts the table between the marks ``<!-- heal foreign -->`` in docs/heal.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, machine_record
from benchmarks.heal_entries import dense_model, figures
from benchmarks.heal_table import PAGE
from compress import Recipe, compress, heal, load
from compress.assets import embedded_model, embedded_text
from compress.evaluation.windows import read_documents, text_windows
from compress.text.tokenize import load_tokenizer

PATH = RESULTS / "heal-foreign.json"
RECIPES = (
    "w2-heal",
    "sparse70-heal",
    "lowrank60-heal",
    "prune-depth2-heal",
    "prune-width75-heal",
    "prune-width75-dress",
    "w2-eva",
)


def run_recipe(name: str, amount: dict[str, int], seed: int, texts: list[Tensor]) -> dict[str, Any]:
    """Compress, measure, heal and measure again."""
    began = time.process_time()
    recipe = Recipe.load(name)
    assert recipe.heal is not None
    data = str(embedded_text("calibration"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        compress(
            embedded_model(),
            recipe.model_copy(update={"heal": None}),
            out,
            data=data,
            samples=amount["samples"],
            length=amount["length"],
            device="cpu",
            seed=seed,
        )
        before = figures(dense_model(), load(out, dtype=torch.float32, device="cpu"), texts)
        settings = recipe.heal.model_dump(mode="json", exclude_defaults=True)
        sizes = {key: amount[key] for key in ("tokens", "batch", "length")}
        healed = heal(
            out,
            source=embedded_model(),
            data=data,
            settings={**settings, **sizes, "evaluations": 8},
            new=Path(folder) / "new",
            device="cpu",
            dtype="fp32",
            seed=seed,
        )
        after = figures(dense_model(), load(healed.out, dtype=torch.float32, device="cpu"), texts)
    told = healed.report.healing
    assert told is not None
    return {
        "recipe": name,
        "seed": seed,
        "before": before,
        "after": after,
        "steps": [told.best_step, told.steps],
        "ended": told.ended,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """KL before and after by recipe, in Markdown."""
    lines = [
        "| recipe | KL on the same kind of text | KL on text of another domain | best step of all |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for key in ("kl", "foreign"):
            start, end = row["before"][key], row["after"][key]
            cells.append(f"{start:.4f} → {end:.4f} ({end / start:.2f})")
        lines.append(
            f"| `{row['recipe']}`, seed {row['seed']} | {' | '.join(cells)} | {row['steps'][0]} of {row['steps'][1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the results, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--foreign", help="a text of another domain", required=True)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    amount = {key: getattr(options, key) for key in ("tokens", "batch", "length", "samples", "windows")}
    tokenizer = load_tokenizer(embedded_model())
    texts = [
        text_windows(read_documents(text), tokenizer, length=options.length, limit=options.windows)
        for text in (embedded_text("heldout"), Path(options.foreign))
    ]
    rows: list[dict[str, Any]] = []
    if PATH.exists() and (kept := json.loads(PATH.read_text()))["amount"] == amount:
        rows = kept["rows"]
    done = {(row["recipe"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for name in options.recipes:
            if (name, seed) in done:
                continue
            rows.append(run_recipe(name, amount, seed, texts))
            print(json.dumps(rows[-1]), flush=True)
            record = {"machine": machine_record(), "amount": amount, "foreign": Path(options.foreign).name}
            PATH.write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")
    made = table(rows)
    print(made)
    if options.write:
        before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- heal foreign -->")
        _, end, after = rest.partition("<!-- /heal foreign -->")
        if not mark or not end:
            raise SystemExit("docs/heal.md has no marks <!-- heal foreign --> … <!-- /heal foreign -->")
        PAGE.write_text(f"{before}{mark}\n{made}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
