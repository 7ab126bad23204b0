"""Every entry of healing's registries beside its null: ``python -m benchmarks.heal_entries [--only w2 …] [--match bone …]``.

The embedded model is compressed once for every base; a cell opens it, trains it in memory on the same windows and measures
KL(dense ‖ healed) on held-out text that neither calibration nor healing has seen. Nothing is written and read back
(``tests/compress/healing/test_stage.py`` holds what is written against what was measured). A null is the same training
without the entry. Both are trained at every rate of ``--rates`` (times a factor of the optimizer's) and with every seed of
``--seeds``, which decides what is calibrated with and trained on. Writes ``benchmarks/results/heal-entries.json`` after every
cell and goes on with what stands there; ``python -m benchmarks.heal_table`` makes the table of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, machine_record
from benchmarks.heal import BASES, BESIDES, GRIDS, LOSSES, PRUNED, Cell
from compress import Recipe, compress, load
from compress.assets import EMBEDDED, embedded_model, embedded_text
from compress.evaluation.windows import read_documents, text_windows
from compress.formats.dense_source import open_any, open_dense
from compress.healing.data import HealingText, healing_text
from compress.healing.job import Job, training_of
from compress.healing.objective import held_out_kl, logits_of
from compress.healing.student import open_student
from compress.models.skeleton import open_skeleton
from compress.planning.healed import healed_parameters
from compress.planning.methods import build
from compress.system.progress import Silent
from compress.text.tokenize import load_tokenizer
from compress.verification.checkpoint import plan_recorded


def entries() -> Iterator[tuple[Cell, Cell]]:
    """Every entry of the registries beside its null, the same training without it."""
    codes: list[Any] = ["norms", "codes"]
    yield from _beside(Cell("w2", GRIDS), "loss", [*LOSSES, "confident", "trilateral", "hidden"])
    yield from _beside(Cell("w2", GRIDS), "loss", [["kl", "hidden"], ["kl", "dual-head"]])
    yield from _beside(Cell("w2", GRIDS), "filter", ["correct", "hard", "loss"])
    yield from _beside(Cell("w2", GRIDS), "sampler", ["uniform", "kmeans", "el2n", "sensitivity", "self"])
    yield from _beside(Cell("w2", GRIDS), "end", ["wise", "bang"])
    yield from _beside(Cell("w2", GRIDS), "schedule", ["cosine", "growing"])
    yield from _beside(Cell("w2", GRIDS), "penalties", ["decay", "kurtosis", "flat"])
    yield from _beside(Cell("w2", GRIDS), "cache", [{"k": 16}])
    yield from _beside(Cell("w2", GRIDS), "optimizer", ["lion", "adamw8"])
    yield from _beside(Cell("w2", GRIDS), "penalties", [{"name": "kurtosis", "weight": 0.01}])
    yield from _beside(Cell("w2", codes), "penalties", ["discrete", {"name": "discrete", "weight": 3.0}])
    for options in ({"statsq": True}, {"freeze": 0.4}, {"elastic": [1]}):
        yield Cell("w2", ["norms", {"name": "codes", **options}]), Cell("w2", codes)
    elastic: dict[str, Any] = {"name": "codes", "elastic": [1]}
    spreads: list[Any] = ["distribution", {"name": "distribution", "weight": 0.1}]
    yield from _beside(Cell("w2", ["norms", elastic]), "penalties", spreads)
    yield Cell("w2", ["norms", {**elastic, "guide": 0.5}]), Cell("w2", ["norms", elastic])
    yield Cell("w2", ["norms", "bits"]), Cell("w2", codes)
    yield Cell("sparse70", ["norms", "smallest"]), Cell("sparse70", PRUNED)
    yield from _beside(Cell("lowrank60", ["norms", "factors"]), "penalties", ["orthonormal"])
    for name in ("nested", "sorsa", "svft", "loldu"):
        yield Cell("lowrank60", ["norms", name]), Cell("lowrank60", ["norms", "factors"])
    lora = Cell("w2+lora16", BESIDES)
    for name in ("sorsa", "svft", "loldu", "bone", {"name": "factors", "dropout": 0.1}):
        yield Cell("w2+lora16", ["norms", "scales", name]), lora
    for base in ("w2+eva16", "w2+eora16"):
        yield Cell(base, BESIDES), lora
    yield Cell("depth2", ["norms", "lora"]), Cell("depth2", PRUNED)
    yield from _beside(Cell("width75", PRUNED), "penalties", ["group"])
    for name in ("lora", "sorsa", "svft", "loldu", "bone", "smallest"):
        yield Cell("width75", ["norms", name]), Cell("width75", PRUNED)


def _beside(null: Cell, key: str, values: list[Any]) -> Iterator[tuple[Cell, Cell]]:
    for value in values:
        yield Cell(null.base, null.train, {key: value}), null


RATE_FACTORS = {"lion": 0.1}
"""Optimizers whose steps are to be so much smaller."""
_TEXTS: dict[str, HealingText] = {}


@dataclass(frozen=True)
class Amount:
    """How much every cell trains and measures; ``windows`` of ``length`` tokens are measured."""

    tokens: int
    batch: int
    length: int
    windows: int
    samples: int


def run_entry(
    folder: Path, cell: Cell, rate: float, seed: int, amount: Amount, texts: list[Tensor]
) -> dict[str, Any]:
    """Train a cell in memory and measure it on the held-out text, and on one of another domain where there is one."""
    settings: dict[str, Any] = {
        "tokens": amount.tokens,
        "batch": amount.batch,
        "length": amount.length,
        "rate": rate * RATE_FACTORS.get(str(cell.changes.get("optimizer")), 1.0),
        "holdout": 8,
        "evaluations": 2,
        "data": EMBEDDED,
        **cell.changes,
        "train": cell.train,
    }
    source = open_dense(embedded_model())
    pruned, plan = plan_recorded(folder, source, changes={"heal": settings})
    heal, skeleton = plan.recipe.heal, open_skeleton(pruned)
    assert heal is not None
    entries = [build("trainable", method) for method in heal.train]
    parameters = healed_parameters(skeleton, plan.recipe, plan.weights, entries=entries)
    device, dtype = torch.device("cpu"), torch.float32
    teacher = dense_model()
    student = open_student(
        folder,
        plan,
        entries,
        parameters,
        teacher=teacher,
        device=device,
        dtype=dtype,
        trust_remote_code=False,
    )
    began = time.process_time()
    key = json.dumps([seed, heal.sampler.model_dump(), cell.base in ("depth2", "width75")])
    if key not in _TEXTS:  # the text is the same for all that draw from it alike
        _TEXTS[key] = healing_text(skeleton, plan.recipe, seed)
    windows = _TEXTS[key]
    job = Job(folder, open_any(folder), pruned, plan, heal, (), windows, device, dtype, seed, Silent())
    with tempfile.TemporaryDirectory() as states:
        state = training_of(job, student, teacher, parameters, Path(states)).run()
    seconds = time.process_time() - began
    if next(teacher.parameters()).is_meta:  # the cache let it go
        dense_model.cache_clear()
        teacher = dense_model()
    return {
        "base": cell.base,
        "label": cell.label,
        "rate": rate,
        "seed": seed,
        **figures(teacher, student.model, texts),
        "held_out": [state.points[0].kl, state.kept_kl],
        "cpu_seconds": round(seconds, 1),
    }


@cache
def dense_model() -> Any:
    """The embedded model in fp32."""
    return load(embedded_model(), dtype=torch.float32, device="cpu")


def figures(dense: Any, other: Any, texts: list[Tensor]) -> dict[str, float]:
    """KL by token on the held-out text (``kl``) and on one of another domain (``foreign``)."""
    return {name: measured(dense, other, text) for name, text in zip(("kl", "foreign"), texts, strict=False)}


@torch.no_grad()
def measured(dense: Any, other: Any, windows: Tensor) -> float:
    """KL by token."""
    total = sum(held_out_kl(logits_of(other, part), logits_of(dense, part)) for part in windows.split(4))
    return total / windows.numel()


def base_folder(work: Path, name: str, seed: int) -> Path:
    """Where a base is."""
    return work / f"{name.replace(':', '-')}-{seed}"


def bases(
    work: Path,
    names: list[tuple[str, int]],
    known: dict[tuple[str, int], dict[str, Any]],
    amount: Amount,
    texts: list[Tensor],
) -> list[dict[str, Any]]:
    """Compress those, by name and seed, that are not in the folder, and measure all.

    Raises:
        SystemExit: one has another KL than the results have of it: they are of other code, or of another machine.
    """
    found = []
    for name, seed in names:
        out = base_folder(work, name, seed)
        if not out.exists():
            compress(
                embedded_model(),
                Recipe.parse(BASES[name]),
                out,
                data=str(embedded_text("calibration")),
                samples=amount.samples,
                length=amount.length,
                device="cpu",
                seed=seed,
            )
        row = known.get((name, seed), {"base": name, "seed": seed})
        measures = figures(dense_model(), load(out, dtype=torch.float32, device="cpu"), texts)
        kl = measures["kl"]
        if abs(kl - row.get("kl", kl)) > 1e-5 * kl:
            raise SystemExit(f"{name} has a KL of {kl}, and {row['kl']} in the results: give other --results")
        if (name, seed) not in known:
            found.append(row)
        row |= measures
    return found


def main() -> None:
    """Run the cells that are not in the results, nulls first."""
    options = _arguments()
    torch.set_num_threads(1)
    amount = Amount(
        options.tokens,
        options.batch,
        options.length,
        options.windows,
        options.samples,
    )
    pairs = [
        (entry, null)
        for entry, null in entries()
        if (not options.only or entry.base in options.only)
        and (not options.match or any(part in entry.label for part in options.match))
    ]
    documents = read_documents(embedded_text("heldout"))
    tokenizer = load_tokenizer(embedded_model())
    texts = [text_windows(documents, tokenizer, length=amount.length, limit=amount.windows)]
    if options.foreign:
        other = read_documents(Path(options.foreign))
        texts.append(text_windows(other, tokenizer, length=amount.length, limit=amount.windows))
    path = Path(options.results)
    rows: list[dict[str, Any]] = []
    if path.exists() and (kept := json.loads(path.read_text()))["amount"] == asdict(amount):
        rows = kept["rows"]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary)
        done = {(row["base"], row.get("label"), row.get("rate"), row["seed"]) for row in rows}
        known = {(row["base"], row["seed"]): row for row in rows if "label" not in row}
        every = {(c.base, c.label): c for entry, null in pairs for c in (null, entry)}.values()
        cells = [cell for cell in every if not options.labels or cell.label in options.labels]
        names = dict.fromkeys(cell.base for cell in cells)
        rows += bases(work, list(product(names, options.seeds)), known, amount, texts)
        for rate, seed, cell in product(options.rates, options.seeds, cells):
            if (cell.base, cell.label, rate, seed) in done:
                continue
            rows.append(run_entry(base_folder(work, cell.base, seed), cell, rate, seed, amount, texts))
            print(json.dumps(rows[-1]), flush=True)
            path.write_text(
                json.dumps({"machine": machine_record(), "amount": asdict(amount), "rows": rows}, indent=1)
                + "\n"
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="names of bases")
    parser.add_argument("--match", nargs="*", help="parts of the entries' labels")
    parser.add_argument("--labels", nargs="*", help="train these alone of them")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-2, 3e-3, 1e-3])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--foreign", help="a text of another domain, measured too")
    parser.add_argument("--results", default=str(RESULTS / "heal-entries.json"))
    parser.add_argument("--work", help="a folder whose compressed bases are used again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
