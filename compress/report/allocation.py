"""What each weight got, drawn: bits by block and kind of weight, and how many weights got what."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compress.report import charts
from compress.report.scales import Scale
from compress.report.schema import Report, WeightFigures
from compress.system import units as words


@dataclass(frozen=True)
class AllocationRow:
    """A structure: how many weights have it, their parameters and their bits a weight."""

    structure: str
    count: int
    parameters: str
    bits: str


@dataclass(frozen=True)
class AllocationView:
    """The section on what each weight got.

    Attributes:
        heat: bits a weight by kind and block; None where no block has a compressed weight.
        shades: the fewest and the most bits, in words.
        rows: structures by rising bits.
        budget: a sentence on the search, where there was one; else empty.
    """

    heat: Markup | None
    shades: tuple[str, str]
    rows: list[AllocationRow]
    budget: str


def allocation_view(report: Report) -> AllocationView | None:
    """The section; None where all weights got the same structure."""
    groups: dict[str, list[WeightFigures]] = {}
    for weight in report.weights:
        groups.setdefault(weight.structure, []).append(weight)
    if len(groups) < 2:
        return None
    ordered = sorted(groups.items(), key=lambda item: _bits(item[1]))
    rows = [
        AllocationRow(structure, len(own), words.in_parameters(_numel(own)), words.figure(_bits(own)))
        for structure, own in ordered
    ]
    heat, shades = _heat(report)
    return AllocationView(heat, shades, rows, _budget(report))


def _numel(weights: Sequence[WeightFigures]) -> int:
    return sum(weight.shape[0] * weight.shape[1] for weight in weights)


def _bits(weights: Sequence[WeightFigures]) -> float:
    return 8 * sum(weight.bytes_after for weight in weights) / max(1, _numel(weights))


def _heat(report: Report) -> tuple[Markup | None, tuple[str, str]]:
    inside = [weight for weight in report.weights if weight.block is not None]
    if not inside:
        return None, ("", "")
    short = words.short_roles([words.role(weight.name, weight.block) for weight in inside])
    cells: dict[tuple[str, int], list[WeightFigures]] = {}
    for weight in inside:
        kind = short[words.role(weight.name, weight.block)]
        cells.setdefault((kind, weight.block or 0), []).append(weight)
    bits = {key: statistics.fmean(one.bits_per_weight for one in own) for key, own in cells.items()}
    scale = Scale(min(bits.values()), max(bits.values()))
    rows = list(dict.fromkeys(kind for kind, _ in cells))
    count = max(report.source.blocks, 1 + max(block for _, block in cells))

    def title(row: int, column: int) -> str:
        structures = dict.fromkeys(weight.structure for weight in cells[rows[row], column])
        return f"block {column}, {rows[row]}: {', '.join(structures)}, {words.figure(bits[rows[row], column])} bits"

    heat = charts.heat_map(rows, count, lambda row, column: bits.get((rows[row], column)), title, scale)
    return heat, (f"{words.figure(scale.low)} bits", f"{words.figure(scale.high)} bits")


def _budget(report: Report) -> str:
    figures = (report.sensitivity or {}).get("budget")
    if not figures:
        return ""
    return (
        f"Chosen by a search for {words.in_bytes(figures['bytes'])} of weight files that {figures['runtime']} runs: "
        f"{figures['allocations_measured']} allocations were measured after the first, "
        f"{figures['allocations_accepted']} of them were better than all before. On its held-out windows the divergence of "
        f"the trial weights is {words.divergence(figures['measured_kl'])} nats a token, where "
        f"{words.divergence(figures['predicted_kl'])} was predicted."
    )
