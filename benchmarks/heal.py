"""Healing measured: ``python -m benchmarks.heal MODEL --calibrate TEXT --text TEXT [--text TEXT]``.

Every base is a recipe that is run once; every cell heals it with other trainables, losses or rates, on the same tokens.
KL(dense ‖ healed) by token and its ratio to the base's are measured on the first windows of each text in fp32. The first
text is of the calibration's kind, further ones are of other domains. ``--peft PYTHON`` trains PEFT's LoRA on
bitsandbytes' NF4 model with the same tokens, in that interpreter's environment. Prints a table and writes
``benchmarks/results/heal-<model>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common import RESULTS
from compress import Recipe, compress, heal, load
from compress.assets import EMBEDDED, embedded_model, embedded_text
from compress.calibrate.corpus import load_apart
from compress.checkpoint.source import open_source
from compress.evaluation.windows import read_documents, text_windows
from compress.healing.samplers.fresh import Fresh
from compress.text.tokenize import load_tokenizer

LINEAR = {"targets": ["linear"], "score": "activation", "true_input_target": True}
GRID = {"quantize": {"bits": 2, "group_size": "auto", "symmetric": False}}
BESIDE = {"targets": ["linear"], **GRID, "lowrank": {"rank": 16}, "score": "activation"}


def _recipe(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "true_sequential": True, **changes}


BASES: dict[str, dict[str, Any]] = {
    "w2": _recipe("w2", steps=[{**LINEAR, **GRID, "solver": "gptq"}]),
    "w3": _recipe("w3", steps=[{**LINEAR, "quantize": {**GRID["quantize"], "bits": 3}, "solver": "gptq"}]),
    "nf4": _recipe(
        "nf4", steps=[{"targets": ["linear"], "quantize": {"type": "nf4", "bits": 4}, "solver": "nearest"}]
    ),
    "sparse70": _recipe("sparse70", steps=[{**LINEAR, "prune": {"sparsity": 0.7}, "solver": "awp"}]),
    "2:4": _recipe("2:4", steps=[{**LINEAR, "prune": {"pattern": "2:4"}, "solver": "awp"}]),
    "lowrank60": _recipe(
        "lowrank60", steps=[{**LINEAR, "lowrank": {"ratio": 0.6}, "solver": "weighted_svd"}]
    ),
    "depth2": {"name": "depth2", "depth_pruning": {"blocks": 2, "by": "loss"}},
    "width75": {"name": "width75", "width_pruning": {"neurons": 0.75}},
    "nf4+eora16": {
        "name": "nf4+eora16",
        "steps": [
            {
                "targets": ["linear"],
                "quantize": {"type": "nf4", "bits": 4},
                "lowrank": {"rank": 16},
                "score": "activation",
                "solver": ["nearest", "eora"],
            }
        ],
    },
    "w2+eora16": {"name": "w2+eora16", "steps": [{**BESIDE, "solver": ["gptq", "eora", "gptq", "eora"]}]},
    "w2+eva16": {"name": "w2+eva16", "steps": [{**BESIDE, "solver": ["gptq", "eva"]}]},
    "w2+lora16": {"name": "w2+lora16", "steps": [{**BESIDE, "solver": ["gptq", "lora"]}]},
}
RANK = 16
PEFT_RUNS = (("kl", 1e-3), ("kl", 5e-3), ("kl", 2e-4), ("ce", 1e-3))
"""Losses and rates of PEFT's LoRA."""
PEFT = Path(__file__).parent / "peers" / "runners" / "run_peft.py"
GRIDS, PRUNED, BESIDES = ["norms", "scales"], ["norms", "values"], ["norms", "scales", "factors"]
LOSSES: list[Any] = [
    "reverse-kl",
    "js",
    "alpha",
    "bd",
    {"name": "bd", "temperature": 2.0},
    {"name": "kl", "temperature": 2.0},
    {"name": "f", "kind": "total-variation"},
    {"name": "f", "kind": "hellinger"},
    "sinkhorn",
    "logits",
    "mixed",
    "ce",
    ["kl", {"name": "ce", "weight": 0.3}],
]


@dataclass(frozen=True)
class Cell:
    """A healing: of which base, and its settings beyond the common ones."""

    base: str
    train: list[Any]
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " + ".join(map(_short, self.train)) + "".join(
            f", {key} {_short(value)}" for key, value in self.changes.items()
        )


def _short(value: Any) -> str:
    return json.dumps(value).replace('"', "") if not isinstance(value, str) else value


def cells() -> Iterator[Cell]:
    """Every cell, the ones of the bars first."""
    yield from (Cell("w2", train) for train in (["norms"], ["scales"], GRIDS, [*GRIDS, "codes"]))
    yield Cell("w2", [*GRIDS, "codes"], {"rate": 1e-2})
    yield from (Cell("w2", GRIDS, {"rate": rate}) for rate in (1e-3, 1e-2, 3e-2))
    yield from (Cell("w3", train) for train in (GRIDS, [*GRIDS, "codes"]))
    yield from (Cell("sparse70", train) for train in (["norms"], ["values"], PRUNED))
    yield from (Cell("sparse70", PRUNED, {"rate": rate}) for rate in (1e-3, 1e-2))
    yield from (Cell(base, PRUNED) for base in ("2:4", "depth2", "width75"))
    yield from (Cell(base, PRUNED, {"rate": 1e-2}) for base in ("depth2", "width75"))
    yield from (Cell("lowrank60", ["norms", "factors"], {"rate": rate}) for rate in (3e-3, 1e-2))
    yield Cell("lowrank60", ["norms", "factors"], {"penalties": "orthonormal"})
    for base in ("w2+eora16", "w2+eva16", "w2+lora16"):
        yield from (Cell(base, BESIDES, {"rate": rate}) for rate in (3e-3, 1e-2))
    yield Cell("nf4", GRIDS)
    yield from (Cell("nf4+eora16", BESIDES, {"rate": rate}) for rate in (3e-3, 1e-2))
    yield from (Cell("w2", GRIDS, {"loss": loss}) for loss in LOSSES)
    yield from (Cell("w2", GRIDS, {"filter": name}) for name in ("correct", "hard", "loss"))
    yield from (Cell("w2", GRIDS, {"optimizer": "lion", "rate": rate}) for rate in (3e-4, 1e-3))
    yield from (
        Cell("w2", GRIDS, change)
        for change in (
            {"schedule": "cosine"},
            {"sampler": "uniform"},
            {"end": "wise"},
            {"penalties": "decay"},
        )
    )


@dataclass(frozen=True)
class Setting:
    """What all cells of a call share."""

    model: str
    calibrate: str
    texts: tuple[str, ...]
    work: str
    device: str
    tokens: int
    samples: int
    length: int
    windows: int
    seed: int
    batch: int
    holdout: int
    evaluations: int


def measured(setting: Setting, folder: str) -> list[float]:
    """KL from the dense model on each text."""
    dense, other = (load(one, dtype=torch.float32, device="cpu") for one in (setting.model, folder))
    return [_kl(dense, other, windows) for windows in _texts(setting)]


@torch.no_grad()
def _kl(dense: Any, other: Any, windows: Tensor) -> float:
    total = 0.0
    for tokens in windows.to(dense.device).split(4):
        log_p, log_q = (one(input_ids=tokens).logits.float().log_softmax(-1) for one in (dense, other))
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total / windows.numel()


def _texts(setting: Setting) -> list[Tensor]:
    tokenizer = load_tokenizer(open_source(setting.model).path)
    found = []
    for text in setting.texts:
        documents = read_documents(Path(text))
        found.append(text_windows(documents, tokenizer, length=setting.length, limit=setting.windows))
    return found


def run_base(setting: Setting, name: str) -> dict[str, Any]:
    """Compress and measure a base."""
    torch.set_num_threads(1)
    began, out = time.perf_counter(), f"{setting.work}/{name.replace(':', '-')}"
    result = compress(
        setting.model,
        Recipe.parse(BASES[name]),
        out,
        data=setting.calibrate,
        samples=setting.samples,
        length=setting.length,
        device="cpu",
        seed=setting.seed,
    )
    seconds = time.perf_counter() - began
    return {
        "base": name,
        "bytes": result.report.bytes.actual,
        "kl": measured(setting, out),
        "seconds": seconds,
    }


def run_cell(setting: Setting, cell: Cell, number: int) -> dict[str, Any]:
    """Heal and measure."""
    torch.set_num_threads(1)
    began, out = time.perf_counter(), f"{setting.work}/healed-{number}"
    common = {
        "tokens": setting.tokens,
        "length": setting.length,
        "batch": setting.batch,
        "holdout": setting.holdout,
        "evaluations": setting.evaluations,
    }
    result = heal(
        f"{setting.work}/{cell.base.replace(':', '-')}",
        source=setting.model,
        data=setting.calibrate,
        train=cell.train,
        settings={**common, **cell.changes},
        new=out,
        device=setting.device,
        seed=setting.seed,
    )
    figures = result.report.healing
    assert figures is not None
    return {
        "base": cell.base,
        "label": cell.label,
        "kl": measured(setting, out),
        "held_out": [figures.start_kl, figures.end_kl],
        "twice": figures.twice,
        "steps": [figures.best_step, figures.steps, figures.planned_steps],
        "ended": figures.ended,
        "seconds": time.perf_counter() - began,
        "training_seconds": figures.seconds,
        "bytes": result.report.bytes.actual,
    }


def run_peft(setting: Setting, python: str, loss: str, rate: float) -> dict[str, Any]:
    """PEFT's LoRA on the NF4 model of bitsandbytes, in an environment of its own, on the same tokens."""
    tokenizer = load_tokenizer(open_source(setting.model).path)
    count = setting.batch * -(-setting.tokens // (setting.batch * setting.length))
    train, _ = load_apart(
        setting.calibrate,
        tokenizer,
        samples=count,
        held_out=setting.holdout,
        length=setting.length,
        seed=setting.seed,
        places=Fresh().places,
    )
    texts = {f"text{place}": windows.to(torch.int64) for place, windows in enumerate(_texts(setting))}
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        windows, out = f"{folder}/windows.safetensors", Path(folder) / "out.json"
        save_file({"train": train.tokens.to(torch.int64).contiguous(), **texts}, windows)
        options = [loss, str(rate), str(RANK), str(setting.batch)]
        environment = {**os.environ, "PYTHONPATH": ""}
        subprocess.run(
            [python, str(PEFT), str(Path(setting.model).resolve()), windows, str(out), *options],
            check=True,
            env=environment,
        )
        found = json.loads(out.read_text())
    label = f"PEFT {found.pop('peft')} LoRA {RANK} on bitsandbytes NF4, {loss}, rate {rate}"
    return {"base": "nf4", "label": label, **found}


def main() -> None:
    """Run bases, then cells, several at a time, and print the table."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        model, calibrate, texts = _places(arguments)
        setting = Setting(
            model,
            calibrate,
            tuple(texts),
            work,
            arguments.device,
            arguments.tokens,
            arguments.samples,
            arguments.length,
            arguments.windows,
            arguments.seed,
            arguments.batch,
            arguments.holdout,
            arguments.evaluations,
        )
        wanted = [cell for cell in cells() if not arguments.only or cell.base in arguments.only]
        path = Path(arguments.results or RESULTS / f"heal-{Path(model).name}.json")
        rows = _run(setting, wanted, arguments.processes, path, peft=arguments.peft)
    _print(rows)


def _run(
    setting: Setting, wanted: list[Cell], processes: int, path: Path, *, peft: str | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        bases = {name: pool.submit(run_base, setting, name) for name in dict.fromkeys(c.base for c in wanted)}
        for base in bases.values():
            rows.append(base.result())
            print(json.dumps(rows[-1]), flush=True)
        jobs = [pool.submit(run_cell, setting, cell, number) for number, cell in enumerate(wanted)]
        for loss, rate in PEFT_RUNS if peft is not None else ():
            jobs.append(pool.submit(run_peft, setting, peft, loss, rate))
        for job in as_completed(jobs):
            if (error := job.exception()) is not None:
                print(f"a cell failed: {type(error).__name__}: {error}", flush=True)
                continue
            rows.append(job.result())
            print(json.dumps(rows[-1]), flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"setting": _public(setting), "rows": rows}, indent=1) + "\n")
    return rows


def _public(setting: Setting) -> dict[str, Any]:
    """The settings without folders of the machine."""
    names = {"model": Path(setting.model).name, "calibrate": Path(setting.calibrate).name}
    texts = [Path(text).name for text in setting.texts]
    device = torch.cuda.get_device_name() if setting.device.startswith("cuda") else setting.device
    return {**asdict(setting), **names, "texts": texts, "work": "", "device": device}


def _print(rows: list[dict[str, Any]]) -> None:
    start = {row["base"]: row["kl"] for row in rows if "label" not in row}
    for row in rows:
        ratios = [
            f"{kl:.4f} ({kl / before:.2f})" for kl, before in zip(row["kl"], start[row["base"]], strict=True)
        ]
        print(
            f"| {row['base']} | {row.get('label', 'as compressed')} | {' | '.join(ratios)} | {row['seconds']:.0f} s |"
        )


def _places(arguments: argparse.Namespace) -> tuple[str, str, list[str]]:
    if arguments.model != EMBEDDED:
        return arguments.model, arguments.calibrate, arguments.text
    given = arguments.calibrate != EMBEDDED
    calibrate = arguments.calibrate if given else str(embedded_text("calibration"))
    return str(embedded_model()), calibrate, arguments.text or [str(embedded_text("heldout"))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibrate", default=EMBEDDED)
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--only", nargs="*", help="names of bases")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--holdout", type=int, default=32)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument(
        "--entries", action="store_true", help="every entry beside its null, instead of all cells"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--peft", metavar="PYTHON", help="an interpreter with peft and bitsandbytes")
    parser.add_argument("--results")
    parser.add_argument("--work")
    return parser.parse_args()


if __name__ == "__main__":
    main()
