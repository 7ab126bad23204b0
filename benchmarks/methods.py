"""Methods side by side on one model: ``python benchmarks/methods.py MODEL --calibration TEXT --heldout TEXT``.

Every cell is a structure (50% sparse, 2:4, 2:4 with 4 bits, …) and holds the methods that can fill it. Each is run by
calibration seed on 128 windows of 256 tokens, block by block through the package's own solvers, and measured in fp32 on
the first 80 windows of 256 tokens of the held-out text: KL(dense ‖ compressed) in nats by token and top-1 agreement.
Prints the medians and the bars, writes ``benchmarks/results/methods-<model>.json`` as it goes (a second call adds what is
missing) and draws quality against bytes beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.calibrate.corpus import load_corpus
from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.evaluation.windows import load_tokenizer, read_text, text_windows
from compress.methods import Methods, methods_of
from compress.models.skeleton import open_skeleton
from compress.recipe import Step
from compress.solve.base import Problem, Solution
from compress.solve.sparsegpt import SparseGPT
from compress.solving import Metrics, solve_weight
from compress.structures.masked import Masked
from compress.structures.masked_grid import MaskedGrid

RESULTS = Path(__file__).parent / "results"
SAMPLES, LENGTH, WINDOWS = 128, 256, 80


@dataclass(frozen=True)
class PruneThenQuantize:
    """The road that joint methods are held against: SparseGPT, then GPTQ on what it kept, with the mask held."""

    needs = frozenset[str]()
    requires = frozenset({"project", "select", "columns"})
    score = "activation"

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure = problem.structure
        assert isinstance(structure, MaskedGrid)
        pruned = SparseGPT().solve(replace(problem, structure=Masked(structure.support, torch.float32)))
        return SparseGPT(refit=0).solve(replace(problem, weight=pruned.theta), pruned)


SPARSE = {
    "random": [{"name": "wanda", "saliency": "random"}],
    "magnitude": [{"name": "wanda", "saliency": "magnitude"}],
    "wanda": ["wanda"],
    "wanda+refit": ["wanda", "refit"],
    "sparsegpt": ["sparsegpt"],
    "sparsegpt+refit": ["sparsegpt", "refit"],
    "alps": ["alps"],
    "awp": ["awp"],
}
ABLATION = {
    "awp plain": [
        {"name": "awp", "begin": "nearest", "normalise": False, "momentum": False, "refit": 0, "steps": 200}
    ],
    "awp normalised": [{"name": "awp", "begin": "nearest", "momentum": False, "refit": 0, "steps": 200}],
    "awp with momentum": [{"name": "awp", "begin": "nearest", "refit": 0, "steps": 200}],
    "awp with refit": [{"name": "awp", "begin": "nearest", "steps": 200}],
}
JOINT = {
    "wanda": ["wanda"],
    "prune then quantize": ["sparsegpt"],
    "sparsegpt": ["sparsegpt"],
    "awp": ["awp"],
    "awp, rounding": ["awp", "sparsegpt"],
    "awp, rounding, coordinate": ["awp", "sparsegpt", "coordinate"],
}
GRID = {"bits": 4, "group": 128, "symmetric": False}
CELLS: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "50%": ({"prune": {"sparsity": 0.5}}, SPARSE),
    "60%": ({"prune": {"sparsity": 0.6}}, SPARSE),
    "70%": ({"prune": {"sparsity": 0.7}}, SPARSE),
    "2:4": ({"prune": {"pattern": "2:4"}}, SPARSE),
    "50% + 4 bits": ({"prune": {"sparsity": 0.5}, "quantize": GRID}, JOINT),
    "2:4 + 4 bits": ({"prune": {"pattern": "2:4"}, "quantize": GRID}, JOINT),
    "50% ablation": ({"prune": {"sparsity": 0.5}}, ABLATION),
}
BARS = [
    *(
        (cell, "awp", other, bound)
        for cell in ("50%", "60%", "70%")
        for other, bound in (("sparsegpt", 0.7), ("wanda", 0.3), ("wanda+refit", 1.0))
    ),
    ("2:4", "awp", "sparsegpt", 0.8),
    ("2:4", "awp", "wanda", 0.5),
    ("50% + 4 bits", "awp, rounding, coordinate", "prune then quantize", 0.85),
    ("2:4 + 4 bits", "awp, rounding, coordinate", "prune then quantize", 0.85),
]
"""Cell, method, rival, and the most that the method's KL may be of the rival's."""


def methods_for(cell: str, method: str, dtype: torch.dtype) -> Methods:
    """What fills a cell; SparseGPT is given the whole layer to choose from, as its authors do."""
    settings, roads = CELLS[cell]
    settings = dict(settings)
    if method.startswith(("sparsegpt", "prune then")) and "sparsity" in settings["prune"]:
        settings["prune"] = {**settings["prune"], "scope": "layer"}
    built = methods_of(Step.model_validate({**settings, "solver": roads[method]}), dtype)
    return replace(built, solvers=(PruneThenQuantize(),)) if method == "prune then quantize" else built


@dataclass
class Bench:
    """A model, its texts, and what the dense model answers."""

    model: str
    calibration: str
    heldout: str

    def __post_init__(self) -> None:
        self.source = open_source(self.model)
        self.tokenizer = load_tokenizer(self.source.path)
        self.windows = text_windows(read_text(self.heldout), self.tokenizer, length=LENGTH, limit=WINDOWS)
        self.dense = self._load()
        self.reference = self._answers(self.dense)

    def measure(self, methods_of_dtype: Callable[[torch.dtype], Methods], seed: int) -> dict[str, float]:
        """Compress, and hold the result against the dense model."""
        began = time.perf_counter()
        thetas, nbytes, numel = self._solve(methods_of_dtype, seed)
        seconds = time.perf_counter() - began
        model = self._load()
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for view, theta in thetas:
                view.put(parameters[view.parameter], theta)
        answers = self._answers(model)
        kl = (self.reference.exp() * (self.reference - answers)).sum(-1).mean()
        same = (self.reference.argmax(-1) == answers.argmax(-1)).float().mean()
        return {
            "kl": float(kl),
            "top1": float(same),
            "bits": 8 * nbytes / numel,
            "bytes": nbytes,
            "seconds": seconds,
        }

    def _solve(
        self, methods_of_dtype: Callable[[torch.dtype], Methods], seed: int
    ) -> tuple[list[Any], int, int]:
        skeleton = open_skeleton(self.source)
        corpus = load_corpus(self.calibration, self.tokenizer, samples=SAMPLES, length=LENGTH, seed=seed)
        thetas, nbytes, numel = [], 0, 0
        with BlockStream(skeleton, corpus.tokens, device=torch.device("cpu"), dtype=torch.float32) as stream:
            stream.prepare()
            for index in range(len(skeleton.blocks)):
                skeleton.load_block(index, device="cpu", dtype=torch.float32)
                views = [view for view in skeleton.block_views(index) if view.sources]
                methods = {v.name: methods_of_dtype(self.source.headers[v.sources[0]].dtype) for v in views}
                seen = stream.observe(index, {name: each.needs for name, each in methods.items()})
                metrics = Metrics()
                for view in views:
                    each, parameter = methods[view.name], skeleton.parameter_of(view)
                    metric = metrics.of(each, seen[view.name])
                    weight = view.get(parameter.detach())
                    packed = solve_weight(each, weight, seen[view.name], metric, seed).pack().packed
                    theta = packed.dense(torch.float32)
                    view.put(parameter, theta)
                    thetas.append((view, theta))
                    nbytes, numel = nbytes + packed.nbytes, numel + theta.numel()
                if index + 1 < len(skeleton.blocks):
                    stream.advance(index)
                skeleton.release_block(index)
        return thetas, nbytes, numel

    def _load(self) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.source.path, dtype=torch.float32
        ).eval()
        return model

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


def show(found: Mapping[tuple[str, str], Mapping[str, float]]) -> Iterator[str]:
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
    for cell, method, rival, bound in BARS:
        if (cell, method) in found and (cell, rival) in found:
            ratio = found[cell, method]["kl"] / found[cell, rival]["kl"]
            yield f"- {cell}: {method} / {rival} = {ratio:.3f} (at most {bound}): {'met' if ratio <= bound else 'NOT MET'}"


def draw(found: Mapping[tuple[str, str], Mapping[str, float]], path: Path) -> None:
    """Quality against bytes, one point for each method in each cell."""
    import matplotlib  # noqa: PLC0415  (optional)

    matplotlib.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(8, 5))
    names = list(dict.fromkeys(method for _, method in found))
    for number, name in enumerate(names):
        points = [(f["bits"], f["kl"]) for (_, method), f in found.items() if method == name]
        axes.scatter(*zip(*points, strict=True), label=name, s=30, marker="osD^vPX*"[number % 8])
    axes.set(
        yscale="log",
        xlabel="bits a weight, everything stored counted",
        ylabel="KL to the dense model, nats a token",
    )
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--heldout", required=True)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.results.mkdir(parents=True, exist_ok=True)
    stem = given.results / f"methods-{Path(given.model).name}"
    store = stem.with_suffix(".json")
    results: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    bench = Bench(given.model, given.calibration, given.heldout)
    for seed in given.seeds:
        for cell in given.cells:
            for method in CELLS[cell][1]:
                key = f"{cell} | {method} | {seed}"
                if key in results or (given.methods and method not in given.methods):
                    continue
                results[key] = bench.measure(lambda dtype, c=cell, m=method: methods_for(c, m, dtype), seed)
                print(key, {name: round(value, 4) for name, value in results[key].items()}, flush=True)
                store.write_text(json.dumps(results, indent=1))
    found = medians(results)
    print("\n".join(show(found)))
    draw(found, stem.with_suffix(".svg"))


if __name__ == "__main__":
    main()
