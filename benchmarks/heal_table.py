"""The table of ``benchmarks.heal_entries``: ``python -m benchmarks.heal_table [--write]``.

An entry is compared with its null at the same seeds, each at that of the rates that both were trained at whose KL on healing's
own held-out windows is least. Prints the table and what beat its null; ``--write`` puts it between the marks
``<!-- heal entries -->`` in docs/heal.md, and what became of text of another domain between ``<!-- heal foreign -->``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS
from benchmarks.heal import Cell
from benchmarks.heal_entries import entries

PAGE = REPOSITORY / "docs" / "heal.md"
NOISE, ONE_SEED = 0.001, 0.005
"""Ratios nearer to 1 than this are taken for 1: means over seeds, and those of one seed."""
SECTIONS = {
    "loss": "losses",
    "filter": "filters",
    "sampler": "samplers",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "end": "ends",
    "penalties": "penalties",
    "cache": "cache",
}
RECIPES = {
    ("w2", "norms + scales"): "w2-heal",
    ("sparse70", "norms + values"): "sparse70-heal",
    ("lowrank60", "norms + factors"): "lowrank60-heal",
    ("depth2", "norms + values"): "prune-depth2-heal",
    ("width75", "norms + values"): "prune-width75-heal",
    ("w2+eva16", "norms + scales + factors"): "w2-eva",
}
"""The base and what is trained of the shipped recipes, about."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """An entry and its null, by seed.

    Attributes:
        entry, null: what was trained.
        pairs: seed → the rows of both.
    """

    entry: Cell
    null: Cell
    pairs: Mapping[int, tuple[Row, Row]]

    @property
    def ratios(self) -> list[float]:
        """The KL of the entry over that of its null, by seed."""
        return [ours["kl"] / theirs["kl"] for ours, theirs in self.pairs.values()]

    @property
    def mean(self) -> float:
        """The mean of the ratios."""
        return sum(self.ratios) / len(self.ratios)

    @property
    def section(self) -> str:
        """Of which registry the entry is."""
        return next((SECTIONS[key] for key in self.entry.changes if key in SECTIONS), "trained")

    @property
    def short(self) -> str:
        """What the entry has that its null has not."""
        changed = Cell("", [], {k: v for k, v in self.entry.changes.items() if k not in self.null.changes})
        trained = Cell("", [one for one in self.entry.train if one not in self.null.train])
        values = ", ".join(changed.label.split(", ")[1:]).partition(" ")[2]
        other = f"base {self.entry.base}" if self.entry.base != self.null.base else ""
        return values or trained.label or other

    @property
    def told(self) -> str:
        """The ratio, its spread over seeds, and a star where all kept their start."""
        star = "*" if all(kept_start(ours) for ours, _ in self.pairs.values()) else ""
        low, high = min(self.ratios), max(self.ratios)
        spread = f" ({low:.3f} to {high:.3f})" if len(self.ratios) > 1 else ""
        return f"`{self.short}` {self.mean:.3f}{star}{spread}"


def kept_start(row: Row) -> bool:
    """Whether no iterate was nearer to the dense model than the checkpoint, on healing's own held-out windows."""
    start, kept = row["held_out"]
    return bool(kept == start)


def compared(rows: Iterable[Row], pairs: Iterable[tuple[Cell, Cell]]) -> list[Compared]:
    """Every entry of which there is a row and one of its null at the same rate and seed."""
    known: dict[tuple[str, str, int], dict[float, Row]] = {}
    for row in rows:
        if "label" in row:
            known.setdefault((row["base"], row["label"], row["seed"]), {})[row["rate"]] = row
    found = []
    for entry, null in pairs:
        by_seed = {}
        for seed in sorted(
            {seed for base, label, seed in known if (base, label) == (entry.base, entry.label)}
        ):
            ours = known[entry.base, entry.label, seed]
            theirs = known.get((null.base, null.label, seed), {})
            common = ours.keys() & theirs.keys()
            if common:
                by_seed[seed] = (_best(ours, common), _best(theirs, common))
        if by_seed:
            found.append(Compared(entry, null, by_seed))
    return found


def _best(rows: Mapping[float, Row], rates: Iterable[float]) -> Row:
    return min((rows[rate] for rate in sorted(rates)), key=lambda row: float(row["held_out"][1]))


def table(found: list[Compared], rows: list[Row]) -> str:
    """The table in Markdown, one line for each null and registry."""
    starts = {(row["base"], row["seed"]): row["kl"] for row in rows if "label" not in row}
    lines = ["| base, KL | null, KL | entries, ratio of their KL to the null's |", "|---|---|---|"]
    groups: dict[tuple[str, str, str], list[Compared]] = {}
    for one in found:
        groups.setdefault((one.null.base, one.null.label, one.section), []).append(one)
    before = None
    for (base, label, section), members in groups.items():
        seed = min(seed for one in members for seed in one.pairs)
        null = _best_of(rows, base, label, seed)
        heads = f"{base}, {starts[base, seed]:.4f} | {label}, {null['kl']:.4f} at {null['rate']:g}"
        heads = " | " if (base, label) == before else heads
        before = (base, label)
        told = ", ".join(one.told for one in sorted(members, key=lambda one: one.mean))
        lines.append(f"| {heads} | {section}: {told} |")
    return "\n".join(lines)


def _best_of(rows: Iterable[Row], base: str, label: str, seed: int) -> Row:
    same = [row for row in rows if (row["base"], row.get("label"), row["seed"]) == (base, label, seed)]
    return min(same, key=lambda row: float(row["held_out"][1]))


def foreign_table(rows: list[Row]) -> str:
    """KL before and after healing, on the same kind of text and on that of another domain, in Markdown."""
    starts = {(row["base"], row["seed"]): row for row in rows if "label" not in row}
    lines = [
        "| as recipe | trained | rate, seed | KL on the same kind of text | KL on text of another domain |"
    ]
    lines.append("|---|---|---|---|---|")
    for (base, label), recipe in RECIPES.items():
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            if (row["base"], row.get("label")) != (base, label) or "foreign" not in row:
                continue
            start = starts[base, row["seed"]]
            cells = [
                f"{start[one]:.4f} → {row[one]:.4f} ({row[one] / start[one]:.3f})"
                for one in ("kl", "foreign")
            ]
            lines.append(f"| `{recipe}` | {label} | {row['rate']:g}, {row['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(found: list[Compared]) -> str:
    """Which entries beat their null with every seed, with one seed alone, and which never did."""
    won = [one for one in found if len(one.ratios) > 1 and max(one.ratios) < 1 and one.mean < 1 - NOISE]
    once = [one for one in found if len(one.ratios) == 1 and one.mean < 1 - ONE_SEED]
    never = [one for one in found if one not in won and one not in once]
    lines = []
    for said, members in (
        ("Beat their null with each of several seeds", won),
        ("Beat it with the one seed that was tried", once),
        ("Did not, or not with every seed, or by less than half a percent with one", never),
    ):
        by_section: dict[str, list[str]] = {}
        for one in members:
            by_section.setdefault(one.section, []).append(f"`{one.short}` ({one.null.base})")
        told = "; ".join(f"{section}: {', '.join(names)}" for section, names in by_section.items())
        lines.append(f"- {said}. {told or 'None'}.")
    return "\n".join(lines)


def write(mark: str, made: str) -> None:
    """Put a table between its marks.

    Raises:
        SystemExit: the page has none.
    """
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} has no marks <!-- {mark} --> … <!-- /{mark} -->")
    PAGE.write_text(f"{before}{begin}\n{made}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = json.loads((RESULTS / "heal-entries.json").read_text())["rows"]
    found = compared(rows, entries())
    tables = {
        "heal entries": f"{table(found, rows)}\n\n{verdict(found)}",
        "heal foreign": foreign_table(rows),
    }
    for mark, made in tables.items():
        print(f"{made}\n")
        if options.write:
            write(mark, made)


if __name__ == "__main__":
    main()
