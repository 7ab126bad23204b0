"""Training from scratch, method by method: ``python -m benchmarks.train_methods [--methods lost low-rank full] [--write]``.

A model of the embedded configuration is trained on the embedded text with every method, rate and seed, on the same tokens; the
held-out loss is that of ``compress train``, and each checkpoint is loaded again and asked for it once more. Of several rates a
method shows the one with the least loss. Writes ``benchmarks/results/train-methods.json`` after every training and goes on with
what stands there; ``--write`` puts the table between the marks ``<!-- train -->`` in docs/train.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import REPOSITORY, RESULTS, machine_record
from compress import load
from compress.assets import embedded_model, embedded_text
from compress.text.tokenize import load_tokenizer
from compress.train.pretrain import TrainSettings, _held_out_loss, _windows, train

PAGE = REPOSITORY / "docs" / "train.md"
PATH = RESULTS / "train-methods.json"
Row = Mapping[str, Any]


def run_method(settings: TrainSettings) -> dict[str, Any]:
    """Train, write, load again and measure."""
    began = time.process_time()
    data = str(embedded_text("calibration"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        trained = train(embedded_model(), out, data=data, settings=settings, device="cpu")
        _, held_out = _windows(load_tokenizer(embedded_model()), data, settings)
        model = load(out, dtype=torch.float32, device="cpu")
        again = _held_out_loss(model, held_out, torch.device("cpu"))
    return {
        "method": settings.method,
        "rate": settings.rate,
        "seed": settings.seed,
        "loss": trained.loss,
        "loaded": again,
        "linear_parameters": trained.linear_parameters,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def best_rates(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Method → its rows at the rate with the least mean loss, by seed."""
    groups: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row["method"], {}).setdefault(row["rate"], []).append(row)
    return {
        method: min(by_rate.values(), key=lambda some: sum(row["loss"] for row in some) / len(some))
        for method, by_rate in groups.items()
    }


def table(rows: list[Row]) -> str:
    """The losses by method, in Markdown."""
    lines = ["| method | parameters of linear layers | rate | held-out loss, nats per token | by seed |"]
    lines.append("|---|---|---|---|---|")
    for method, some in sorted(best_rates(rows).items(), key=lambda pair: _mean(pair[1])):
        by_seed = ", ".join(f"{row['loss']:.3f}" for row in sorted(some, key=lambda row: int(row["seed"])))
        lines.append(
            f"| `{method}` | {some[0]['linear_parameters']:,} | {some[0]['rate']:g} | {_mean(some):.3f} | {by_seed} |"
        )
    return "\n".join(lines)


def _mean(rows: list[Row]) -> float:
    return sum(float(row["loss"]) for row in rows) / len(rows)


def main() -> None:
    """Train what is not in the results, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="*", default=["full", "low-rank", "lost"])
    parser.add_argument("--rates", type=float, nargs="*", default=[2e-3])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=51_200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    amount = {"tokens": options.tokens, "batch": options.batch, "length": options.length, "ratio": 0.6}
    rows: list[Row] = []
    if PATH.exists() and (kept := json.loads(PATH.read_text()))["amount"] == amount:
        rows = kept["rows"]
    done = {(row["method"], row["rate"], row["seed"]) for row in rows}
    for seed, rate, method in product(options.seeds, options.rates, options.methods):
        if (method, rate, seed) in done:
            continue
        settings = TrainSettings(method=method, rate=rate, seed=seed, every=1000, held_out=32, **amount)
        rows.append(run_method(settings))
        print(json.dumps(rows[-1]), flush=True)
        PATH.write_text(
            json.dumps({"machine": machine_record(), "amount": amount, "rows": rows}, indent=1) + "\n"
        )
    made = table(rows)
    print(made)
    if options.write:
        before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- train -->")
        _, end, after = rest.partition("<!-- /train -->")
        if not mark or not end:
            raise SystemExit("docs/train.md has no marks <!-- train --> … <!-- /train -->")
        PAGE.write_text(f"{before}{mark}\n{made}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
