"""What was left out of a model before its weights were compressed, in words."""

from __future__ import annotations

from collections.abc import Iterator

from compress.checkpoint.source import Source


def shape_notes(source: Source) -> Iterator[str]:
    """A sentence for the blocks and one for each kind of unit that are no longer there."""
    if source.dropped:
        blocks = ", ".join(str(index) for index in source.dropped)
        yield f"Blocks left out (numbered as in the original): {blocks}."
    for kind, kept in source.width_pruned.get("kept", {}).items():
        count = int(kept[0], 16).bit_count()
        worst = max(source.width_pruned["errors"].values())
        yield (
            f"Of the {kind} of every block {count} stay; the weights that read them were fitted anew and lose at most "
            f"{worst:.2%} of their outputs' energy."
        )
