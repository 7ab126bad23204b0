"""Sentences for the report: which blocks and which units of their widths a model was pruned of."""

from __future__ import annotations

from collections.abc import Iterator

from compress.checkpoint.source import Source


def shape_notes(source: Source) -> Iterator[str]:
    """A sentence on the blocks that were left out, and one on each kind of unit."""
    if source.dropped:
        blocks = ", ".join(str(index) for index in source.dropped)
        yield f"Blocks left out (numbered as in the original): {blocks}."
    for kind, kept in source.width_pruned.get("kept", {}).items():
        counts = [int(units, 16).bit_count() for units in kept]
        least, most = min(counts), max(counts)
        stay = f"{most}" if least == most else f"{least} to {most}"
        worst = max(source.width_pruned["errors"].values())
        yield (
            f"Of the {kind} of every block {stay} stay; the weights that read them were fitted anew and lose at most "
            f"{worst:.2%} of their outputs' energy."
        )
