"""Coverage: the share of the matrix parameters of the decoder blocks that a plan compresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compress.models.skeleton import Skeleton
from compress.models.stacked import is_matrix

ENOUGH = 0.95
"""Below this share in any block a run warns, and a strict run refuses."""


@dataclass(frozen=True)
class Coverage:
    """What is compressed of the matrices of the decoder blocks.

    Attributes:
        share: of all their parameters; 1 where there are none.
        lowest: the share in the block with the least.
        block: the name of that block.
        left: the largest matrix there that is left dense; an empty name where there is none.
    """

    share: float = 1.0
    lowest: float = 1.0
    block: str = ""
    left: str = ""

    @property
    def is_enough(self) -> bool:
        """Whether every block is compressed but for a twentieth."""
        return self.lowest >= ENOUGH

    def sentence(self, reasons: Mapping[str, str]) -> str:
        """The warning for people; ``reasons`` says why a tensor was left dense."""
        reason = next(
            (reason for name, reason in reasons.items() if self.left and _same(name, self.left)), ""
        )
        why = f": {reason}" if reason else ""
        largest = f" (the largest left is {self.left}{why})" if self.left else ""
        return (
            f"only {self.lowest:.0%} of the matrix parameters of {self.block} are compressed, "
            f"{self.share:.0%} over all blocks{largest}"
        )


def coverage(skeleton: Skeleton, compressed: Mapping[str, int], ignored: Iterable[str]) -> Coverage:
    """Count the matrices of every block.

    Args:
        skeleton: the model, on meta.
        compressed: view → how many of its parameters are compressed.
        ignored: views that the recipe leaves out by name, or that its method cannot make smaller: they do not count.
    """
    left_out = set(ignored)
    by_parameter: dict[str, int] = {}
    passed: dict[str, int] = {}
    for view in skeleton.views:
        size = view.shape[0] * view.shape[1]
        if view.name in compressed:
            by_parameter[view.parameter] = by_parameter.get(view.parameter, 0) + size
        elif view.name in left_out or view.router:
            passed[view.parameter] = passed.get(view.parameter, 0) + size
    rows = [_block(skeleton, name, by_parameter, passed) for name in skeleton.blocks]
    rows = [row for row in rows if row[2]]
    if not rows:
        return Coverage()
    share = sum(done for _, done, *_ in rows) / sum(total for _, _, total, _ in rows)
    name, done, total, left = min(rows, key=lambda row: row[1] / row[2])
    return Coverage(share, done / total, name, left)


def _block(
    skeleton: Skeleton, name: str, compressed: Mapping[str, int], passed: Mapping[str, int]
) -> tuple[str, int, int, str]:
    """The block, how many of its matrix parameters are compressed, how many there are, and the largest left dense."""
    done = total = most = 0
    left = ""
    for place, module in skeleton.model.get_submodule(name).named_modules(prefix=name):
        for leaf, parameter in module.named_parameters(recurse=False):
            full = f"{place}.{leaf}"
            if full in skeleton.tied or not is_matrix(module, leaf, tuple(parameter.shape)):
                continue
            size = parameter.numel() - passed.get(full, 0)
            covered = compressed.get(full, 0)
            done, total = done + covered, total + size
            if size - covered > most:
                most, left = size - covered, full
    return name, done, total, left


def _same(disk: str, parameter: str) -> bool:
    return disk in (parameter, parameter.removesuffix(".weight"))
