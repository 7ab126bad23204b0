"""Sentences for the report: which blocks and which units of their widths a model was pruned of."""

from __future__ import annotations

import math
from collections.abc import Iterator

from compress.checkpoint.source import Source
from compress.models.skeleton import Skeleton
from compress.prune.experts import EXPERTS, RoutedExperts
from compress.prune.merge_experts import MERGED
from compress.prune.units import Part


def whole_note(part: Part, share: float) -> str:
    """A sentence on a share of units that rounds to all of them: it prunes nothing."""
    steps = f" (they are left out {part.step} at a time)" if part.step > 1 else ""
    smaller = (
        "" if part.total <= part.step else f": give at most {_floor((part.total - part.step) / part.total)}"
    )
    return f"width_pruning.{part.name} {share:g} keeps all {part.total} {part.name} of every block{steps}{smaller}"


def whole_experts_note(routed: RoutedExperts, share: float) -> str:
    """A sentence on a share of experts that rounds to all of them: it prunes nothing."""
    return f"width_pruning.experts {share:g} keeps all {routed.total} experts of every block"


def _floor(share: float) -> str:
    return f"{math.floor(100 * share) / 100:g}"


def shape_notes(skeleton: Skeleton) -> Iterator[str]:
    """A sentence on the blocks that were left out, one on each kind of unit, and one on what keeps the whole model's shape."""
    source = skeleton.source
    if source.dropped:
        blocks = ", ".join(str(index) for index in source.dropped)
        yield f"Blocks left out (numbered as in the original): {blocks}."
    yield from expert_notes(source)
    for kind, kept in source.width_pruned.get("kept", {}).items():
        if kind == EXPERTS:
            continue
        counts = [int(units, 16).bit_count() for units in kept]
        least, most = min(counts), max(counts)
        stay = f"{most}" if least == most else f"{least} to {most}"
        worst = max(source.width_pruned["errors"].values())
        yield (
            f"Of the {kind} of every block {stay} stay; the weights that read them were fitted anew and lose at most "
            f"{worst:.2%} of their outputs' energy."
        )
    if skeleton.extra and (source.dropped or source.width_pruned):
        yield _spare_note(skeleton)


def expert_notes(source: Source) -> Iterator[str]:
    """A sentence on a mixture's routed experts, where there are fewer than in the whole model; before a run, too."""
    record = source.width_pruned
    if EXPERTS not in record.get("kept", {}):
        return
    stay = int(record["kept"][EXPERTS][0], 16).bit_count()
    if MERGED not in record:
        yield f"Of the routed experts of every block {stay} stay, as they were."
        return
    sizes = [int(members, 16).bit_count() for block in record[MERGED][EXPERTS] for members in block]
    most = f", up to {max(sizes)} into one" if sizes else ""
    yield (
        f"The routed experts of every block are merged into {stay}{most}: the mean of their weights with matched neurons. "
        "The router keeps the rows of those that most tokens are sent to."
    )


def _spare_note(skeleton: Skeleton) -> str:
    """Of tensors that the model does not use, such as those of DeepSeek-V3's block that predicts further tokens."""
    few = len(skeleton.extra) == 1
    return (
        f"{len(skeleton.extra)} {'tensor' if few else 'tensors'} that no parameter of the model uses, such as "
        f"{skeleton.extra[0]}, {'stays' if few else 'stay'} as in the whole model, in its numbers and widths: a server that "
        "reads them (to predict several tokens at once) is to be told not to."
    )
