"""A simulation of runs on many GPUs from measured parts. Nothing of it was measured on more than one.

``python -m benchmarks.speed.simulate_ranks [--only LABEL] [--write]`` counts what `compress run` computes and sends for shapes
of large models (those of docs/forecasts.md), divides it by measured and by stated rates, shares windows and weights out as the
code does (:func:`compress.pipeline.dealing.deal`), and prints hours and efficiency on 1, 8, 64 and 512 GPUs. ``--write``
records the table and puts it into docs/tasks/distributed.md.

Measured: products in bf16 and memory of one NVIDIA H200 (benchmarks/results/nvidia-h200.json); what is copied, hashed and
packed on the host, and the starts of a solver's operators, as on one core of the CPU of docs/forecasts.md. Assumed: fp32
products at :data:`FP32` of those in bf16, and links that reach :data:`LINKS`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.common import REPOSITORY, RESULTS, table, write_between, write_results
from benchmarks.forecasts import CORE, FORMS, Form, write_headers
from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.dealing import deal
from compress.planning.duration import work_of
from compress.planning.make import make_plan
from compress.planning.model_sizes import hidden_size, numel, parameters_of
from compress.planning.parts import statistics_bytes
from compress.planning.plan import Plan, PlannedWeight
from compress.planning.solver_costs import costs_of
from compress.planning.work import Work
from compress.recipe.recipe import Recipe
from compress.score.statistics import GRADIENT_NEEDS, Statistics
from compress.system.machine import Machine

PAGE = REPOSITORY / "docs" / "tasks" / "distributed.md"
RECIPES = ("w4-gptq", "best-w4")
GPUS = (1, 8, 64, 512)
NODE = 8
"""GPUs of a node, which NVLink joins."""
NVLINK = 300e9
LINKS = {"InfiniBand": 50e9, "Ethernet": 12.5e9}
"""Bytes a second between nodes, by link."""
FP32 = 0.05
"""fp32 products of a GPU in those of bf16."""
_SENT_BACK = 8
"""Bytes for an element of a weight that is dealt out: fp32 there, fp32 back."""


@dataclass(frozen=True)
class Parts:
    """What a run takes, whatever the number of GPUs.

    Attributes:
        alone: seconds of what the first process does alone.
        shared: seconds of one GPU for what is shared by windows.
        windows: that there are.
        solving: by number of GPUs, seconds of the longest share of the weights.
        copied: bytes that every other process is sent of its own: blocks, and sums back.
        divided: bytes of hidden states and of weights, of which a process is sent its share.
    """

    alone: float
    shared: float
    windows: int
    solving: dict[int, float]
    copied: float
    divided: float

    def deeper(self, first: Parts, blocks: int) -> Parts:
        """The parts of ``blocks`` blocks, where these are of two and ``first`` of one."""

        def grown(one: float, two: float) -> float:
            return one + (blocks - 1) * (two - one)

        solving = {count: grown(first.solving[count], self.solving[count]) for count in self.solving}
        return Parts(
            grown(first.alone, self.alone),
            grown(first.shared, self.shared),
            self.windows,
            solving,
            grown(first.copied, self.copied),
            grown(first.divided, self.divided),
        )

    def seconds(self, gpus: int, link: float) -> float:
        """Time on so many GPUs; all that is sent goes through the first one's link."""
        share = math.ceil(self.windows / gpus) / self.windows
        sent = (gpus - 1) * self.copied + (1 - 1 / gpus) * self.divided
        return (
            self.alone + self.shared * share + self.solving[gpus] + sent / (NVLINK if gpus <= NODE else link)
        )


def device() -> Machine:
    """The measured GPU: products at the most rows that were timed, and a copy's bytes."""
    found = json.loads((RESULTS / "nvidia-h200.json").read_text(encoding="utf-8"))
    rows = found["parts"]["timing"]["rows"]
    products = next(row for row in rows if row["name"].startswith("bf16"))["table"][-1]["tflop_per_s"]
    copied = next(row for row in rows if row["name"] == "copy")["gb_per_s"]
    rate = products * 1e12 / 2
    return Machine(
        {"bfloat16": rate, "float32": FP32 * rate}, copied * 1e9, CORE.read, CORE.write, device="cuda"
    )


def parts_of(skeleton: Skeleton, plan: Plan, work: Work, gpu: Machine) -> Parts:
    """Count a plan."""
    calibrate = plan.recipe.calibrate
    data_free = replace(work, blocks=0.0, statistics=0.0, solving={}, moved=0.0)
    # What is moved for bytes of the source is the host's; the rest goes with the passes.
    host = _host_moved(skeleton, plan)
    passes = replace(work, solving={}, fixed=0.0, read=0.0, written=0.0, moved=work.moved - host)
    states = 2.0 * calibrate.samples * calibrate.length * hidden_size(skeleton)
    copied = divided = 0.0
    solving = dict.fromkeys(GPUS, 0.0)
    for index, name in enumerate(skeleton.blocks):
        weights = plan.block(index)
        needs = {weight.name: weight.needs for weight in weights}
        views = [weight.view for weight in weights]
        block, sums = 2.0 * parameters_of(skeleton, name), statistics_bytes(skeleton, views, needs)
        stages = _stages(skeleton, plan, index, weights)
        streams, turns = 2 if plan.needs_dense else 1, len(stages) + 1
        copied += streams * turns * block + sums
        divided += streams * (turns + 1) * states + _SENT_BACK * sum(map(numel, views)) + sums
        if any(need & GRADIENT_NEEDS for need in needs.values()):
            copied += block + 4.0 * sum(view.shape[0] ** 2 + view.shape[1] ** 2 for view in views)
            divided += 3 * states
        for gpus in GPUS:
            solving[gpus] += sum(longest(skeleton, stage, gpus, gpu) for stage in stages)
    alone = data_free.seconds(gpu) + host / CORE.bandwidth
    return Parts(alone, passes.seconds(gpu), calibrate.samples, solving, copied, divided)


def _host_moved(skeleton: Skeleton, plan: Plan) -> float:
    """Bytes that the host moves: as of a recipe without data."""
    found = work_of(
        skeleton, make_plan(skeleton, Recipe.load("w4-rtn"), dtype=torch.bfloat16), torch.bfloat16
    )
    assert found is not None
    return found.moved if plan.needs_data else 0.0


def _stages(
    skeleton: Skeleton, plan: Plan, index: int, weights: Sequence[PlannedWeight]
) -> list[list[PlannedWeight]]:
    """What is solved together."""
    if not plan.recipe.true_sequential:
        return [list(weights)]
    by_name = {weight.name: weight for weight in weights}
    stages = (
        [by_name[view.name] for view in stage if view.name in by_name] for stage in skeleton.stages(index)
    )
    return [stage for stage in stages if stage]


def longest(skeleton: Skeleton, weights: Sequence[PlannedWeight], gpus: int, gpu: Machine) -> float:
    """Seconds of the longest share of weights that are dealt out."""
    shared: dict[str, Statistics] = {}
    for group in skeleton.fused_groups([weight.view for weight in weights]):
        same = Statistics(tokens=0)
        shared |= {view.name: same for view in group}
    shares = deal(weights, shared, gpus)
    return max(
        sum(cost.at(gpu) for weight in share for cost in costs_of(weight).values()) for share in shares
    )


def simulated(form: Form, recipe: str, gpu: Machine) -> Parts:
    """The parts of a model, from plans of one and of two blocks."""
    found = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory(prefix="compress-simulation-") as folder:
            write_headers(Path(folder), replace(form, blocks=count))
            skeleton = open_skeleton(open_source(Path(folder)))
            plan = make_plan(skeleton, Recipe.load(recipe), dtype=torch.bfloat16)
            work = work_of(skeleton, plan, torch.bfloat16)
            assert work is not None
            found.append(parts_of(skeleton, plan, work, gpu))
    return found[1].deeper(found[0], form.blocks)


def row(form: Form, recipe: str, link: str, parts: Parts) -> list[object]:
    """One line: hours and efficiency by number of GPUs, and the most of them that gain a tenth of the time over fewer."""
    times = {gpus: parts.seconds(gpus, LINKS[link]) for gpus in GPUS}
    cells: list[object] = [form.label, f"`{recipe}`", link, f"{times[1] / 3600:.3g} h"]
    cells += [f"{times[gpus] / 3600:.3g} h ({times[1] / times[gpus] / gpus:.2f})" for gpus in GPUS[1:]]
    gains = [gpus for before, gpus in zip(GPUS, GPUS[1:], strict=False) if times[gpus] < 0.9 * times[before]]
    return [*cells, str(max(gains, default=1))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print the table, and record it if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", help="shapes whose label begins so")
    parser.add_argument("--write", action="store_true", help="record, and write the page's table")
    asked = parser.parse_args(arguments)
    gpu, rows = device(), list[list[object]]()
    for form in FORMS:
        if form.experts or not form.label.startswith(asked.only):
            continue
        for recipe in RECIPES:
            parts = simulated(form, recipe, gpu)
            print(f"{form.label} {recipe}: {parts}", flush=True)
            rows += [row(form, recipe, link, parts) for link in LINKS]
    columns = [
        "shape",
        "recipe",
        "between nodes",
        *(f"{gpus} GPUs" if gpus > 1 else "1 GPU" for gpus in GPUS),
    ]
    found = table([*columns, "gains up to"], rows)
    print(found)
    if asked.write:
        write_results("simulated-ranks", {"simulated": True, "columns": columns, "rows": rows})
        write_between(PAGE, "simulated ranks", found)


if __name__ == "__main__":
    main()
