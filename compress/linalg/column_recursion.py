"""GPTQ's recursion: round columns one by one and push the error of each onto those that follow (arXiv:2210.17323, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from compress_kernels import native
from torch import Tensor

from compress.linalg.rounding import ColumnRounder, EvenColumns


def round_columns(
    columns: Tensor,
    root: Tensor,
    rounder: ColumnRounder,
    places: Sequence[int],
    *,
    block: int = 128,
    first: Tensor | None = None,
    drift: Tensor | None = None,
    pushed: Tensor | None = None,
) -> Tensor:
    """Round all columns in place.

    With ``(H + λI)⁻¹ = Uᵀ U``, rounding column i leaves the error ``e = (w_i − q_i) / U_ii`` and moves every later column k by
    ``−e · U_ik``. Everything is held transposed, so that a column is contiguous in memory.

    Args:
        columns: fp32 ``[in, out]`` in the order of rounding; afterwards the rounded values.
        root: U, fp32 ``[in, in]``, upper, in the same order.
        rounder: of the columns by their numbers in the weight.
        places: those numbers, ``[in]``.
        block: columns whose updates are gathered into one matrix product.
        first: what is rounded in the place of the first column, ``[out]`` (Qronos).
        drift: GPTAQ's ``P`` ``[in, in]``, strictly upper: column k also takes ``w_i · P_ik``.
        pushed: takes the columns as they are before they are rounded, fp32 ``[in, out]``: with the errors of earlier ones.

    Returns:
        The squares of the errors, summed over the columns: each row's loss in the damped metric, ``[out]``.
    """
    losses = torch.zeros(columns.shape[1], device=columns.device)
    for start in range(0, len(places), block):
        stop = min(start + block, len(places))
        here, after = slice(start, stop), slice(stop, None)
        part = columns[here]
        corner = root[here, here]
        within = None if drift is None else drift[here, here]
        values, errors = _round_block(
            part, corner, rounder, places[start:stop], None if start else first, within
        )
        columns[after].addmm_(root[here, after].T, errors, alpha=-1)
        if drift is not None:
            columns[after].addmm_(drift[here, after].T, part)
        losses += errors.square_().sum(0)
        if pushed is not None:
            pushed[here] = part
        part.copy_(values)
    return losses


def _round_block(
    part: Tensor,
    corner: Tensor,
    rounder: ColumnRounder,
    places: Sequence[int],
    first: Tensor | None,
    drift: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Values and errors ``[columns, out]`` of one block, which is left with the errors of earlier columns pushed onto it."""
    if isinstance(rounder, EvenColumns) and _has_kernel(part):
        grid = (
            side.expand(-1, part.shape[1]).contiguous() for side in (rounder.scale, rounder.low, rounder.high)
        )
        groups = [place // rounder.width for place in places]
        first = None if first is None else first.contiguous()
        made: tuple[Tensor, Tensor] = torch.ops.compress_kernels.native_round_columns(
            part, corner, *grid, groups, first, drift
        )
        return made
    values, errors = torch.empty_like(part), torch.empty_like(part)
    for i, place in enumerate(places):
        values[i] = rounder(part[i] if i or first is None else first, place)
        torch.sub(part[i], values[i], out=errors[i]).div_(corner[i, i])
        if i + 1 < len(part):
            part[i + 1 :].addr_(corner[i, i + 1 :], errors[i], alpha=-1)
            if drift is not None:
                part[i + 1 :].addr_(drift[i, i + 1 :], part[i])
    return values, errors


def _has_kernel(part: Tensor) -> bool:
    """Whether the C++ kernel takes a block: a plain one on the CPU."""
    return (
        part.device.type == "cpu"
        and part.dtype == torch.float32
        and part.is_contiguous()
        and native.load().loaded
    )
