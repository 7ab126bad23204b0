"""Allocations of one budget side by side: ours, and those that anybody could think of, at equal bytes.

Every allocation is put together from the same trial weights (GPTQ on the dense model's inputs; embeddings and head rounded) and
judged by its KL divergence from the dense model on windows of a text that nothing was tuned on. Budgets are sizes of uniform
models, to the byte; no allocation takes more, and its share of the budget is printed.

    python -m benchmarks.budget --model MODEL --calibrate TEXT --text OTHER --work FOLDER --out results.json

A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress.allocate.amounts import Amount
from compress.allocate.divergence import DivergenceMeter
from compress.allocate.narrow_trials import without_narrow
from compress.allocate.problem import BudgetProblem
from compress.allocate.refine import refine
from compress.allocate.units import GONE, Unit
from compress.assets import EMBEDDED, embedded_model
from compress.calibrate.corpus import load_tokens
from compress.checkpoint.source import open_source
from compress.formats.gguf.mixes import mixed_types
from compress.pipeline.budget import Measured, SearchSettings, measure
from compress.pipeline.budget_space import Space, open_space
from compress.planning.make import facts_of
from compress.text.tokenize import load_tokenizer

Labels = dict[str, str]


@dataclass(frozen=True)
class Trial:
    """A model with its trial weights, and what it is judged by.

    Attributes:
        space: what can become of the model.
        measured: losses and slopes.
        judge: measures divergence on the reported text.
        known: divergences that an earlier run has measured.
        path: their file.
    """

    space: Space
    measured: Measured
    judge: DivergenceMeter
    known: dict[str, float]
    path: Path

    def kl(self, allocation: Mapping[str, str]) -> float:
        """Divergence on the reported text."""
        key = json.dumps(dict(allocation), sort_keys=True)
        if key not in self.known:
            self.known[key] = self.judge.mean(allocation)
            self.path.write_text(json.dumps(self.known), encoding="utf-8")
        return self.known[key]


def uniform(units: tuple[Unit, ...], bits: int, group: Callable[[list[str]], str]) -> Labels:
    """Every unit on the grid of ``bits`` bits; ``group`` picks among its group sizes, by rising size."""
    return {
        unit.name: group(
            [c.label for c in unit.choices if c.label.startswith(f"int{bits}-")] or [unit.choices[-1].label]
        )
        for unit in units
    }


def largest_first(problem: BudgetProblem, budget: int) -> Labels:
    """All units in 8 bits; then, the largest first, unit by unit down by one bit, until the budget holds."""
    units = sorted(problem.units, key=lambda unit: -unit.numel)
    labels = uniform(tuple(problem.units), 8, lambda names: names[0])
    for bits in (6, 5, 4, 3, 2):
        lower = uniform(tuple(problem.units), bits, lambda names: names[0])
        for unit in units:
            if problem.nbytes(labels) <= budget:
                return labels
            labels[unit.name] = lower[unit.name]
    return labels


def at_random(problem: BudgetProblem, budget: int, draw: random.Random) -> Labels:
    """Random candidates, moved at random towards the budget, and then up as long as anything fits."""
    sizes = {
        unit.name: {c.label: c.nbytes for c in unit.choices if c.label != "dense"} for unit in problem.units
    }
    labels = {name: draw.choice(list(choices)) for name, choices in sizes.items()}
    total = problem.nbytes(labels)
    names = list(sizes)
    while total > budget:
        name = draw.choice(names)
        smaller = [label for label, size in sizes[name].items() if size < sizes[name][labels[name]]]
        if smaller:
            label = draw.choice(smaller)
            total += sizes[name][label] - sizes[name][labels[name]]
            labels[name] = label
    for name in draw.sample(names, len(names)) * 3:
        room = budget - total + sizes[name][labels[name]]
        larger = [label for label, size in sizes[name].items() if sizes[name][labels[name]] < size <= room]
        if larger:
            label = draw.choice(larger)
            total += sizes[name][label] - sizes[name][labels[name]]
            labels[name] = label
    return labels


def bits_only(problem: BudgetProblem) -> BudgetProblem:
    """The problem with integer grids of one group size."""
    units = []
    for unit in problem.units:
        integers = [c.label for c in reversed(unit.choices) if c.label.startswith("int")]
        coarse = {label.partition("-")[0]: label for label in integers}
        kept = tuple(c for c in unit.choices if c.label in coarse.values() or c.label == "dense")
        units.append(replace(unit, choices=kept, narrow={}))
    return replace(problem, units=tuple(units), removals={})


def all_neurons(problem: BudgetProblem) -> BudgetProblem:
    """The problem with what single weights become alone: no neuron and no block is left out."""
    return replace(problem, units=without_narrow(problem.units), removals={})


MIXES = {"q2_k_m": ("q2_k", "m"), "q3_k_m": ("q3_k", "m"), "q4_k_m": ("q4_k", "m"), "q5_k_m": ("q5_k", "m")}


def mixes(space: Space, problem: BudgetProblem) -> dict[str, tuple[Labels, int]]:
    """Name → llama.cpp's own allocation and its bytes: the types of its mixed files, as trial weights of ours."""
    found = {}
    for name, (main, mix) in MIXES.items():
        types = mixed_types(facts_of(space.skeleton), main, mix)
        labels = {unit.name: types[unit.views[0].name] for unit in problem.units}
        if all(any(c.label == labels[unit.name] for c in unit.choices) for unit in problem.units):
            found[name] = (labels, problem.nbytes(labels))
    return found


def budgets(problem: BudgetProblem) -> dict[str, tuple[Labels, int]]:
    """Name → a uniform allocation and its bytes, about 4.25, 3.25 and 2.5 bits a weight."""
    finest, coarsest = (lambda names: names[-1]), (lambda names: names[0])
    found = {}
    for name, bits, group in (("4.25", 4, coarsest), ("3.25", 3, coarsest), ("2.5", 2, finest)):
        labels = uniform(tuple(problem.units), bits, group)
        found[name] = (labels, problem.nbytes(labels))
    return found


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def compare(
    trial: Trial, seed: int, trials: int, randoms: int, wanted: Sequence[str] | None = None
) -> dict[str, Any]:
    """The table of one model and seed; ``wanted`` names some of the budgets."""
    space, measured = trial.space, trial.measured
    problem = measured.problem(space)
    plain = replace(problem, slopes={})
    rows: dict[str, Any] = {}
    ours = space.runtime.format == "gguf"
    known = mixes(space, problem) if ours else budgets(problem)
    for name, (even, budget) in known.items():
        if wanted is not None and name not in wanted:
            continue
        draw = random.Random(seed)
        drawn = [at_random(problem, budget, draw) for _ in range(randoms)]
        random_kl = [trial.kl(labels) for labels in drawn]
        refined = refine(measured.meter, problem, budget, trials=trials, seed=seed)
        allocations = {
            "llama.cpp's" if ours else "uniform": even,
            "Fisher alone": plain.solve(budget),
            "knapsack": problem.solve(budget),
            "refined": refined.allocation,
        }
        if not ours:
            allocations |= {
                "largest first": largest_first(problem, budget),
                "bits only": refine(
                    measured.meter, bits_only(problem), budget, trials=trials, seed=seed
                ).allocation,
                "all neurons and blocks": refine(
                    measured.meter, all_neurons(problem), budget, trials=trials, seed=seed
                ).allocation,
            }
        row: dict[str, Any] = {label: trial.kl(labels) for label, labels in allocations.items()}
        if drawn:
            row["random, best of 20"] = min(random_kl[:20])
            row["random, median"] = sorted(random_kl)[len(random_kl) // 2]
        rows[name] = {
            "bytes": budget,
            "bits": 8 * budget / space.size.numel,
            "kl": row,
            "share": {label: problem.nbytes(labels) / budget for label, labels in allocations.items()},
            **(rank_correlations(problem, plain, drawn, random_kl) if len(drawn) > 1 else {}),
            "narrow FFNs": sum(
                unit.choice(refined.allocation[unit.name]).neurons is not None for unit in space.units
            )
            // 3,
            "blocks left out": len({u.block for u in space.units if refined.allocation[u.name] == GONE}),
            "accepted": refined.accepted,
            "tried": refined.tried,
        }
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def rank_correlations(
    problem: BudgetProblem, plain: BudgetProblem, drawn: Sequence[Labels], measured: list[float]
) -> dict[str, float]:
    """Rank correlations of predicted and measured divergences over random allocations."""
    return {
        "rank correlation": spearman([problem.predicted(labels) for labels in drawn], measured),
        "rank correlation, Fisher alone": spearman([plain.predicted(labels) for labels in drawn], measured),
    }


def opened(arguments: argparse.Namespace, seed: int) -> Trial:
    """The model with its trial weights."""
    model = str(embedded_model()) if arguments.model == EMBEDDED else arguments.model
    source = open_source(model)
    space, _ = open_space(source, arguments.runtime, Amount("bits", 16, "16 bits"))
    work = Path(arguments.work) / f"seed{seed}"
    work.mkdir(parents=True, exist_ok=True)
    calibrate = {"data": arguments.calibrate, "samples": arguments.samples, "length": arguments.length}
    dtype = space.skeleton.dtype
    settings = SearchSettings(arguments.runtime, calibrate, torch.device("cpu"), dtype, seed)
    measured = measure(space, settings, 3.25, work)
    tokenizer = load_tokenizer(source.path, trust_remote_code=False)
    windows = load_tokens(
        arguments.text, tokenizer, samples=arguments.windows, length=arguments.length, seed=0
    )
    judge = DivergenceMeter(space.skeleton, measured.trials, windows, torch.device("cpu"), dtype, work)
    path = work / "divergences.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Trial(space, measured, judge, known, path)


def main() -> None:
    """Run the comparison for the seeds and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--runtime", default="native")
    parser.add_argument("--calibrate", default="embedded")
    parser.add_argument("--text", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--randoms", type=int, default=30)
    parser.add_argument("--budgets", nargs="+", help="some of the rows: 4.25, 3.25, 2.5, or q4_k_m and so on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = {}
    for seed in arguments.seeds:
        results[str(seed)] = compare(
            opened(arguments, seed), seed, arguments.trials, arguments.randoms, arguments.budgets
        )
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
