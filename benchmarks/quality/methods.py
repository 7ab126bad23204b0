"""Methods side by side on one model: ``python -m benchmarks.quality.methods MODEL --calibration TEXT --heldout TEXT``.

Every cell is a structure (50% sparse, 2:4 with 4 bits, 3 bits, …) and holds the methods that can fill it. Each is run by
calibration seed on 128 windows of 256 tokens as a recipe, by the package itself, and what it wrote is loaded and measured in
fp32 on the first 80 windows of 256 tokens of the held-out text: KL(dense ‖ compressed) in nats by token and top-1 agreement.
Prints the medians and the bars, writes ``benchmarks/results/methods-<model>.json`` as it goes (a second call adds what is
missing) and draws quality against bytes beside it. ``embedded`` stands for the packaged model and its own texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.common import RESULTS
from compress import Recipe, compress, load
from compress.assets import EMBEDDED, embedded_model, embedded_text
from compress.checkpoint.source import open_source
from compress.evaluation.windows import read_documents, text_windows
from compress.text.tokenize import load_tokenizer

SAMPLES, LENGTH, WINDOWS = 128, 256, 80

Road = Mapping[str, Any]
"""How a cell is filled: what the recipe's only step says besides its structure, or keys of the recipe itself."""

LAYER = {"prune.scope": "layer"}
"""SparseGPT is given the whole layer to choose from, as its authors do."""
STAGES = {"true_sequential": True}
"""Weights in the order in which data meets them."""
TRUE_INPUT = {**STAGES, "true_input_target": True}
"""Besides, each corrects for what those before it have done to its inputs."""
LOSS = {"score": "fisher"}
"""An error costs what it does to the model's loss, not to the layer's own output: gradients are taken first."""
BY_GRADIENT = {"score": {"name": "fisher", "tokens": "by_gradient"}}
"""The same, with each token counted by its gradient."""
SPARSE: dict[str, Road] = {
    "random": {"solver": "random"},
    "magnitude": {"solver": {"name": "wanda", "saliency": "magnitude"}},
    "relative": {"solver": {"name": "wanda", "saliency": "relative"}},
    "fisher": {"solver": {"name": "wanda", "saliency": "fisher"}},
    "wanda": {"solver": "wanda"},
    "wanda+refit": {"solver": ["wanda", "refit"]},
    "sparsegpt": {"solver": "sparsegpt", **LAYER},
    "sparsegpt+refit": {"solver": ["sparsegpt", "refit"], **LAYER},
    "alps": {"solver": "alps"},
    "awp at once": {"solver": "awp"},
    "awp": {**TRUE_INPUT, "solver": "awp"},
    "awp, two-sided": {**TRUE_INPUT, **LOSS, "solver": "awp"},
}
SPREAD: dict[str, Road] = {
    "random": {"solver": "random", "prune.allocate": "owl"},
    **{
        f"awp, {name}": {**TRUE_INPUT, "solver": "awp", **how}
        for name, how in {
            "uniform": LAYER,
            "owl": {"prune.allocate": "owl"},
            "fisher": {"prune.allocate": "fisher"},
            "global": {"prune.scope": "global"},
        }.items()
    },
}
PLAIN_AWP = {
    "name": "awp",
    "begin": "nearest",
    "normalise": False,
    "momentum": False,
    "refit": 0,
    "steps": 200,
}
ABLATION: dict[str, Road] = {
    "awp plain": {"solver": PLAIN_AWP},
    "awp normalised": {"solver": {**PLAIN_AWP, "normalise": True}},
    "awp with momentum": {"solver": {**PLAIN_AWP, "normalise": True, "momentum": True}},
    "awp with refit": {"solver": {"name": "awp", "begin": "nearest", "steps": 200}},
    "awp, mask by ADMM": {"solver": "awp"},
    "awp, in stages": {**TRUE_INPUT, "solver": "awp"},
    "awp, two-sided": {**TRUE_INPUT, **LOSS, "solver": "awp"},
}
# SparseGPT alone, then its recursion over what it kept, with the mask held: GPTQ under a mask.
PRUNE_THEN_QUANTIZE = [{"name": "sparsegpt", "round": False}, {"name": "sparsegpt", "refit": 0}]
JOINT: dict[str, Road] = {
    "random": {"solver": "random"},
    "wanda": {"solver": "wanda"},
    "prune then quantize": {"solver": PRUNE_THEN_QUANTIZE, **LAYER},
    "sparsegpt": {"solver": "sparsegpt", **LAYER},
    "awp": {**TRUE_INPUT, "solver": "awp"},
    "awp, rounding at once": {"solver": ["awp", "sparsegpt", "coordinate_descent"]},
    "awp, rounding": {**TRUE_INPUT, "solver": ["awp", "sparsegpt", "coordinate_descent"]},
    "awp, yaqa": {**TRUE_INPUT, **LOSS, "solver": ["awp", "yaqa"]},
}
PLAIN_GPTQ = {"name": "gptq", "clip_ratios": [1.0]}
SCALES_AND_CODES = ["gptq", "group_scales", "coordinate_descent"]
GRIDS: dict[str, Road] = {
    "random": {"solver": "random"},
    "nearest": {"solver": "nearest"},
    "hqq": {"solver": "hqq"},
    "deepshape": {**TRUE_INPUT, "solver": [*SCALES_AND_CODES, "deepshape"]},
    "deepshape, half its rate": {
        **TRUE_INPUT,
        "solver": [*SCALES_AND_CODES, {"name": "deepshape", "rate": 0.25}],
    },
    "awq": {
        "transforms": "awq",
        "quantize.scales": "mse",
        "score": "activation-diagonal",
        "solver": "nearest",
    },
    "awp as in the paper": {"solver": {**PLAIN_AWP, "accumulate": False}},
    "awp": {"solver": "awp"},
    "plain gptq": {"solver": PLAIN_GPTQ},
    "gptq": {"solver": "gptq"},
    "gptaq": {**TRUE_INPUT, "solver": {**PLAIN_GPTQ, "input_correction": "gptaq"}},
    "qronos": {**TRUE_INPUT, "solver": PLAIN_GPTQ},
    "gptq, stages": {**TRUE_INPUT, "solver": "gptq"},
    "adaround alone": {"solver": "adaround"},
    "adaround": {**TRUE_INPUT, "solver": ["gptq", "coordinate_descent", "adaround"]},
    "coordinate_descent": {**TRUE_INPUT, "solver": ["gptq", "coordinate_descent"]},
    "group_scales": {**TRUE_INPUT, "solver": SCALES_AND_CODES},
    "signround alone": {**STAGES, "solver": "signround"},
    "signround": {**TRUE_INPUT, "solver": [*SCALES_AND_CODES, "signround"]},
    "yaqa": {**TRUE_INPUT, **LOSS, "solver": [*SCALES_AND_CODES, "yaqa"]},
    "yaqa, tokens by gradient": {**TRUE_INPUT, **BY_GRADIENT, "solver": [*SCALES_AND_CODES, "yaqa"]},
    "gsq": {**TRUE_INPUT, **BY_GRADIENT, "solver": [*SCALES_AND_CODES, "yaqa", "gsq"]},
}
TABLES: dict[str, Road] = {
    name: GRIDS[name] for name in ("random", "nearest", "plain gptq", "gptq, stages", "group_scales")
}
"""On grids of fixed values: signed powers of two, RF8."""
NEURONS: dict[str, Road] = {
    "refit alone": {"width_pruning": {"neurons": 0.75}},
    **{
        f"merged at a cosine of {likeness}": {"width_pruning": {"neurons": 0.75, "merge": likeness}}
        for likeness in (0.9, 0.5, 0.2, 0.01)
    },
}
"""FFN neurons chosen by the fit of what reads them; of those that are so alike one goes first. At .01 any pair is: the null."""
JOINT_GRID = {"bits": 4, "group_size": 128, "symmetric": False}
CELLS: dict[str, tuple[Road, dict[str, Road]]] = {
    **{f"{share}%": ({"prune": {"sparsity": share / 100}}, SPARSE) for share in (50, 60, 70)},
    "2:4": ({"prune": {"pattern": "2:4"}}, SPARSE),
    "50% + 4 bits": ({"prune": {"sparsity": 0.5}, "quantize": JOINT_GRID}, JOINT),
    "2:4 + 4 bits": ({"prune": {"pattern": "2:4"}, "quantize": JOINT_GRID}, JOINT),
    **{f"{bits} bits": ({"quantize": {**JOINT_GRID, "bits": bits}}, GRIDS) for bits in (4, 3, 2)},
    **{
        f"shift, {bits} bits": ({"quantize": {"type": "shift", "bits": bits, "group_size": 128}}, TABLES)
        for bits in (4, 3)
    },
    "rf8": ({"quantize": {"type": "rf8", "group_size": 128}}, TABLES),
    "8 bits": (
        {"quantize": {"bits": 8, "group_size": 128}},
        {name: TABLES[name] for name in ("random", "nearest")},
    ),
    "75% of the neurons": ({}, NEURONS),
    "50% ablation": ({"prune": {"sparsity": 0.5}}, ABLATION),
    "70% by layer": ({"prune": {"sparsity": 0.7}}, SPREAD),
}
NULLS = frozenset({"random", "magnitude", "nearest"})
BEST, BEST_AWP, BEST_JOINT = "best of ours", "our awp", "our joint awp"
GROUPS = {
    BEST: (
        "gptq",
        "gptq, stages",
        "adaround",
        "coordinate_descent",
        "group_scales",
        "signround",
        "yaqa",
        "yaqa, tokens by gradient",
        "gsq",
    ),
    BEST_AWP: ("awp", "awp, two-sided"),
    BEST_JOINT: ("awp, rounding", "awp, yaqa"),
}
"""Of several roads a bar takes the one that is best there."""
BARS: list[tuple[str, str, str | None, float]] = [
    *(
        (cell, BEST_AWP, other, bound)
        for cell in ("50%", "60%", "70%")
        for other, bound in (("sparsegpt", 0.7), ("wanda", 0.3), ("wanda+refit", 1.0))
    ),
    ("2:4", BEST_AWP, "sparsegpt", 0.8),
    ("2:4", BEST_AWP, "wanda", 0.5),
    *((f"{bits} bits", BEST, "plain gptq", 0.75) for bits in (4, 3, 2)),
    ("3 bits", "adaround", "plain gptq", 0.9),
    ("50% + 4 bits", BEST_JOINT, "prune then quantize", 0.85),
    ("2:4 + 4 bits", BEST_JOINT, "prune then quantize", 0.85),
]
"""Cell, method, rival, and the most that the method's KL may be of the rival's."""
ABSOLUTE = {"docs-llama-13m": [("2 bits", "signround", None, 0.045), ("2 bits", BEST, None, 0.045)]}
"""By model: what the KL itself may be."""


def recipe_for(cell: str, method: str) -> Recipe:
    """The recipe that fills a cell by a method."""
    structure, roads = CELLS[cell]
    step: dict[str, Any] = {key: dict(value) for key, value in structure.items()}
    whole: dict[str, Any] = {}
    for key, value in roads[method].items():
        part, _, inner = key.partition(".")
        if key in Recipe.model_fields:
            whole[key] = value
        elif not inner:
            step[key] = value
        elif part != "prune" or "sparsity" in step["prune"]:
            step[part][inner] = value
    return Recipe.parse({"name": "methods", **whole, "steps": [step] if step else []})


@dataclass
class Bench:
    """A model, its texts, and what the dense model answers."""

    model: str
    calibration: str
    heldout: str

    def __post_init__(self) -> None:
        source = open_source(embedded_model() if self.model == EMBEDDED else self.model)
        tokenizer = load_tokenizer(source.path)
        text = embedded_text("heldout") if self.heldout == EMBEDDED else Path(self.heldout)
        self.windows = text_windows(read_documents(text), tokenizer, length=LENGTH, limit=WINDOWS)
        self.reference = self._answers(load(self.model, dtype=torch.float32, device="cpu"))

    def measure(self, recipe: Recipe, seed: int) -> dict[str, float]:
        """Compress, load, and hold the result against the dense model."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            wall, processor = time.perf_counter(), time.process_time()
            done = compress(
                self.model,
                recipe,
                out,
                data=self.calibration,
                samples=SAMPLES,
                length=LENGTH,
                seed=seed,
                device="cpu",
            )
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            answers = self._answers(load(out, dtype=torch.float32, device="cpu"))
        kl = (self.reference.exp() * (self.reference - answers)).sum(-1).mean()
        same = (self.reference.argmax(-1) == answers.argmax(-1)).float().mean()
        return {
            "kl": float(kl),
            "top1": float(same),
            "bits": done.plan.bits_per_weight if done.plan.weights else done.plan.bits_per_weight_model,
            "bytes": done.plan.weight_bytes or done.plan.total_bytes,
            "seconds": wall,
            "processor_seconds": processor,
        }

    @torch.no_grad()
    def _answers(self, model: PreTrainedModel) -> Tensor:
        parts = [torch.log_softmax(model(batch).logits.float(), -1) for batch in self.windows.split(8)]
        return torch.cat(parts)


def medians(results: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """(cell, method) → figure → median over the seeds that were run."""
    runs: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for key, figures in results.items():
        cell, method, _ = key.split(" | ")
        runs.setdefault((cell, method), []).append(figures)
    return {
        place: {name: statistics.median(one[name] for one in figures) for name in figures[0]}
        | {"seeds": len(figures)}
        for place, figures in runs.items()
    }


def show(found: Mapping[tuple[str, str], Mapping[str, float]], model: str) -> Iterator[str]:
    """The table and the bars, in lines of Markdown."""
    yield "| cell | method | KL | top-1 | bits a weight | seconds | seeds |"
    yield "|---|---|---|---|---|---|---|"
    for cell in CELLS:
        for method in CELLS[cell][1]:
            if figures := found.get((cell, method)):
                yield (
                    f"| {cell} | {method} | {figures['kl']:.4f} | {figures['top1']:.3f} | {figures['bits']:.2f} "
                    f"| {figures['seconds']:.0f} | {figures['seeds']} |"
                )
    yield ""
    yield from bars(found, model)


def bars(found: Mapping[tuple[str, str], Mapping[str, float]], model: str) -> Iterator[str]:
    """Every bar with the measured figure; a cell that was not measured says so."""
    for cell, method, rival, bound in [*BARS, *ABSOLUTE.get(model, [])]:
        ours, name = _of(found, cell, method)
        theirs = 1.0 if rival is None else _of(found, cell, rival)[0]
        if ours is None or theirs is None:
            yield f"- {cell}: {method} / {rival}: not measured"
            continue
        ratio = ours / theirs
        against = "" if rival is None else f" / {rival}"
        yield f"- {cell}: {name}{against} = {ratio:.3f} (at most {bound}): {'met' if ratio <= bound else 'NOT MET'}"
    for cell, (_, roads) in CELLS.items():
        if "ablation" in cell or "layer" in cell:
            continue
        null = min((found[cell, n]["kl"] for n in NULLS if (cell, n) in found), default=None)
        own = {m: found[cell, m]["kl"] for m in roads if m not in NULLS and (cell, m) in found}
        if null is None or not own:
            continue
        worse = [f"{m} ({kl / null:.2f})" for m, kl in own.items() if kl >= null]
        verdict = "met" if not worse else f"NOT MET by {', '.join(worse)}"
        yield f"- {cell}: every method below the best of random and nearest ({null:.4f}): {verdict}"


def _of(
    found: Mapping[tuple[str, str], Mapping[str, float]], cell: str, method: str
) -> tuple[float | None, str]:
    """A method's KL and its name; of several the best."""
    names = GROUPS.get(method, (method,))
    known = {name: found[cell, name]["kl"] for name in names if (cell, name) in found}
    if not known:
        return None, method
    name = min(known, key=lambda each: known[each])
    return known[name], f"{method} ({name})" if method in GROUPS else name


DRAWN = {
    "random": "x",
    "magnitude": "1",
    "nearest": "1",
    "wanda": "v",
    "wanda+refit": "^",
    "sparsegpt": "s",
    "prune then quantize": "s",
    "alps": "D",
    "awp": "*",
    "awp, two-sided": "p",
    "awp, rounding": "*",
    "awp, yaqa": "p",
    "hqq": "P",
    "awq": "X",
    "plain gptq": "s",
    "gptq, stages": "d",
    "adaround": "h",
    "group_scales": "o",
    "deepshape": "<",
    "signround": "p",
    "yaqa": "*",
    **dict.fromkeys(NEURONS, "."),
}
"""What is drawn, and by which sign; the rest is in the table."""


def draw(found: Mapping[tuple[str, str], Mapping[str, float]], path: Path) -> None:
    """Quality against bytes, one point for each method in each cell, cells that differ in kind side by side."""
    import matplotlib  # noqa: PLC0415  (optional)

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "compress", "font.size": 8})
    from matplotlib import pyplot  # noqa: PLC0415

    kinds = {"grids": GRIDS, "masks": SPARSE, "masks on a 4-bit grid": JOINT}
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 4.2), sharey=True)
    for axes, (title, roads) in zip(panels, kinds.items(), strict=True):
        named: set[str] = set()
        for cell in (cell for cell, (_, own) in CELLS.items() if own is roads):
            points = {
                method: found[cell, method] for method in DRAWN if (cell, method) in found and method in roads
            }
            if not points:
                continue
            # Cells of the same bytes (50% and 2:4) are set a little apart.
            aside = 0.15 if cell.startswith("2:4") else 0.0
            for method, figures in points.items():
                label = None if method in named else method
                color = f"C{list(roads).index(method) % 10}"
                across = figures["bits"] + aside
                axes.plot(across, figures["kl"], DRAWN[method], color=color, label=label, markersize=7)
                named.add(method)
            lowest = min(points.values(), key=lambda figures: figures["kl"])
            under = (lowest["bits"] + aside, lowest["kl"])
            axes.annotate(cell, under, (0, -14), textcoords="offset points", ha="center", fontsize=7)
        axes.set(yscale="log", title=title, xlabel="bits a weight, everything stored counted")
        axes.grid(alpha=0.3)
        axes.margins(x=0.3, y=0.12)
        if named:
            axes.legend(fontsize=7)
    panels[0].set_ylabel("KL to the dense model, nats a token")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def keep(store: Path, key: str, figures: Mapping[str, float]) -> None:
    """Add a result to the file, in which another process may have written since."""
    results = json.loads(store.read_text()) if store.is_file() else {}
    results[key] = {name: float(f"{value:.6g}") for name, value in figures.items()}
    fresh = store.with_suffix(".new")
    fresh.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    fresh.replace(store)


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or 'embedded'")
    parser.add_argument("--calibration", default=EMBEDDED)
    parser.add_argument("--heldout", default=EMBEDDED)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only print and draw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.results.mkdir(parents=True, exist_ok=True)
    name = Path(given.model).name
    store = given.results / f"methods-{name}.json"
    bench = Bench(given.model, given.calibration, given.heldout) if given.seeds else None
    for seed in given.seeds:
        for cell in given.cells:
            for method in CELLS[cell][1]:
                key = f"{cell} | {method} | {seed}"
                known = store.is_file() and key in json.loads(store.read_text())
                if known or (given.methods and method not in given.methods):
                    continue
                assert bench is not None
                figures = bench.measure(recipe_for(cell, method), seed)
                keep(store, key, figures)
                print(key, {each: round(value, 4) for each, value in figures.items()}, flush=True)
    found = medians(json.loads(store.read_text()))
    print("\n".join(show(found, name)))
    draw(found, store.with_suffix(".svg"))


if __name__ == "__main__":
    main()
