"""The report of a run, from its plan, records and figures."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import GGUFBlocks, Layout, TableCodes

from compress.calibrate.corpus import Corpus
from compress.checkpoint.writer import Written
from compress.formats.servers import servers_of
from compress.models.skeleton import Skeleton
from compress.planning.plan import Plan, PlannedWeight
from compress.system.monitor import END, PEAK, SECONDS, START, WALL, Monitor

from .schema import (
    BlockFigures,
    Bytes,
    Calibration,
    FormatChoice,
    Machine,
    Report,
    Shard,
    Skipped,
    SourceModel,
    StepFigures,
    WeightFigures,
)

_PACKAGES = ("compress-llm", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run besides its output."""

    skeleton: Skeleton
    plan: Plan
    corpus: Corpus | None
    device: torch.device
    seed: int
    monitor: Monitor
    notes: tuple[str, ...]
    sensitivity: Mapping[str, Any] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Package → version of what the output depends on."""
    result = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            result[name] = "not installed"
    return result


def assemble(facts: RunFacts, written: Written) -> Report:
    """The report of a run whose weights are all on disk."""
    plan = facts.plan
    records = {name: record for entry in written.entries for name, record in entry.records.items()}
    actual = sum(size for size, _ in written.shards.values())
    return Report(
        versions=versions(),
        recipe=plan.recipe.public(),
        seed=facts.seed,
        source=_source(facts),
        format=FormatChoice(
            name=plan.format, reason=plan.format_reason, servers=servers_of(plan.format, plan.weights)
        ),  # type: ignore[arg-type]
        bytes=Bytes(
            source=plan.source_bytes, planned=plan.total_bytes, actual=actual, outside=plan.outside_bytes
        ),
        shards=tuple(
            Shard(file=f, sha256=digest, bytes=size) for f, (size, digest) in written.shards.items()
        ),
        weights=tuple(_weight(weight, plan, records[weight.name]) for weight in plan.weights),
        skipped=tuple(Skipped(name=s.name, reason=s.reason, bytes=s.nbytes) for s in plan.skipped),
        calibration=_calibration(facts),
        plan=plan.to_json(),
        tensors=dict(written.tensors),
        sensitivity=dict(facts.sensitivity) or None,
        notes=facts.notes,
        machine=Machine(device=str(facts.device), threads=torch.get_num_threads(), system=platform.system()),
        steps=_steps(facts.monitor),
        blocks=_blocks(written),
        seconds=facts.monitor.wall,
        peak_bytes=facts.monitor.peak,
        planned_peak_bytes=plan.peak_memory,
    )


def _source(facts: RunFacts) -> SourceModel:
    source, model = facts.skeleton.source, facts.skeleton.model
    return SourceModel(
        name=source.path.name,
        architecture=type(model).__name__,
        parameters=facts.plan.source_numel,
        blocks=len(facts.skeleton.blocks),
        dtype=str(facts.skeleton.dtype).removeprefix("torch."),
        stored_as=source.stored_as or None,
    )


def _calibration(facts: RunFacts) -> Calibration | None:
    if facts.corpus is None:
        return None
    samples, length = facts.corpus.tokens.shape
    return Calibration(
        data=facts.plan.recipe.calibrate.data.replace("\\", "/").rsplit("/", 1)[-1],
        samples=samples,
        length=length,
        tokens=samples * length,
        bos=facts.corpus.bos,
    )


def _weight(weight: PlannedWeight, plan: Plan, record: dict[str, Any]) -> WeightFigures:
    headers = plan.facts.headers
    after = weight.nbytes
    step = plan.recipe.all_steps[weight.step]
    return WeightFigures(
        name=weight.name,
        block=weight.view.block,
        kind=weight.view.kind,
        expert=weight.view.expert,
        shape=weight.view.shape,
        structure=describe(weight.layout, weight.activations),
        solver=" + ".join(method.name for method in step.solver),
        bits_per_weight=8 * after / weight.numel,
        bytes_before=weight.numel * headers[weight.view.sources[0]].dtype.itemsize,
        bytes_after=after,
        **record,
    )


def describe(layout: Layout, activations: ActivationScheme | None = None) -> str:
    """A layout in a few words, and how its layer's inputs are rounded: ``int4 group 128, inputs int8 per token``."""
    weights = _describe_weights(layout)
    return weights if activations is None else f"{weights}, inputs {activations.label}"


def _describe_weights(layout: Layout) -> str:
    facts = layout.to_json()
    if isinstance(layout, GGUFBlocks):
        return f"GGUF {layout.type.upper()}"
    if isinstance(layout, TableCodes):
        return f"{layout.kind} of {layout.bits} bits, group {layout.group_size}"
    if "bits" not in facts:
        return str(facts["name"])
    group = facts["group"]
    spread = f"group {group}" if isinstance(group, int) else f"per {group}"
    return f"int{facts['bits']} {spread}" + ("" if facts.get("symmetric", True) else ", asymmetric")


def _steps(monitor: Monitor) -> tuple[StepFigures, ...]:
    return tuple(
        StepFigures(name=name, seconds=seconds, peak_bytes=monitor.peaks.get(name))
        for name, seconds in monitor.seconds.items()
    )


def is_step(name: str) -> bool:
    """Whether a figure of a journal's entry is the time of a step of its block."""
    return name != "peak_bytes" and name != WALL and not name.startswith((SECONDS, PEAK, START, END))


def _blocks(written: Written) -> tuple[BlockFigures, ...]:
    figures = []
    for entry in written.entries:
        if isinstance(entry.block, int):
            seconds = sum(value for name, value in entry.seconds.items() if is_step(name))
            peak = int(entry.seconds.get("peak_bytes", 0)) or None
            spans = _spans(entry.seconds)
            figures.append(BlockFigures(index=entry.block, seconds=seconds, peak_bytes=peak, spans=spans))
    return tuple(figures)


def _spans(seconds: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Step → when it began and ended, in the order of their beginnings."""
    names = [name.removeprefix(START) for name in seconds if name.startswith(START)]
    spans = {name: (seconds[f"{START}{name}"], seconds[f"{END}{name}"]) for name in names}
    return dict(sorted(spans.items(), key=lambda item: item[1]))
