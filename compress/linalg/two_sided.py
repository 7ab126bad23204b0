"""Two-sided rounding and coordinate descent, tile by tile along the diagonals of a weight.

Element (i, j) depends on the elements above it in its column and to its left in its row. Tiles on one diagonal do not depend
on each other and are processed together: the number of steps is that of the columns and tile rows, not of the elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.linalg.rounding import ElementRounder, SliceRounder

Place = tuple[slice, slice]


@dataclass(frozen=True)
class Tiling:
    """A weight of ``out`` rows and ``size`` columns cut into tiles of ``rows`` and ``columns``."""

    out: int
    size: int
    rows: int
    columns: int

    @property
    def down(self) -> int:
        """Number of tiles in a column."""
        return -(-self.out // self.rows)

    @property
    def across(self) -> int:
        """Number of tiles in a row."""
        return -(-self.size // self.columns)

    def waves(self) -> Iterator[tuple[int, list[Place]]]:
        """For each diagonal the first tile's number in its row, and the places of its tiles, by rising number in the row."""
        for wave in range(self.down + self.across - 1):
            numbers = range(max(0, wave - self.down + 1), min(self.across, wave + 1))
            yield numbers.start, [self._place(wave - number, number) for number in numbers]

    def pad(self, matrix: Tensor) -> Tensor:
        """``matrix`` ``[out, in]`` with zeros below and to the right, up to whole tiles."""
        below, right = self.down * self.rows - self.out, self.across * self.columns - self.size
        return F.pad(matrix, (0, right, 0, below)).contiguous()

    def pad_right(self, matrix: Tensor, corner: float) -> Tensor:
        """``matrix`` ``[in, in]`` up to whole tiles, with ``corner`` on the added diagonal."""
        return _grown(matrix, self.across * self.columns - self.size, corner)

    def pad_left(self, matrix: Tensor, corner: float) -> Tensor:
        """``matrix`` ``[out, out]`` up to whole tiles, with ``corner`` on the added diagonal."""
        return _grown(matrix, self.down * self.rows - self.out, corner)

    def _place(self, row: int, column: int) -> Place:
        rows, columns = row * self.rows, column * self.columns
        return slice(rows, rows + self.rows), slice(columns, columns + self.columns)


def round_both(
    target: Tensor, rounder: ElementRounder, left: Tensor, right: Tensor, rows: int, columns: int
) -> Tensor:
    """Round ``target`` with errors pushed down and to the right (YAQA, arXiv:2505.22988, eq. 6); the values ``[out, in]``.

    Args:
        target: fp32 ``[out, in]``, rows and columns in the order of rounding.
        rounder: of the elements in that order.
        left: upper factor ``[out, out]`` of the left side, as in :class:`~compress.linalg.cholesky.InverseRoot`.
        right: upper factor ``[in, in]`` of the right side.
        rows: of a tile; there is no feedback between them.
        columns: of a tile.
    """
    tiling = Tiling(target.shape[0], target.shape[1], rows, min(columns, target.shape[1]))
    goal, rounder = tiling.pad(target), rounder.arranged(tiling.pad)
    # The padding has no errors, so that it moves nothing.
    left, right = tiling.pad_left(left, 1.0), tiling.pad_right(right, 1.0)
    corners = _corners(right, tiling.columns)
    unit = torch.eye(rows, device=target.device)
    whiten = torch.linalg.solve_triangular(_corners(left, rows).mT, unit, upper=False)
    values = torch.zeros_like(goal)
    row_errors, column_errors = torch.zeros_like(goal), torch.zeros_like(goal)
    for first, places in tiling.waves():
        goals = [goal[r, c] - left[: r.start, r].T @ row_errors[: r.start, c] for r, c in places]
        pushed = [column_errors[r, : c.start] @ right[: c.start, c] for r, c in places]
        part = _stacked([goal - push for goal, push in zip(goals, pushed, strict=True)])
        rounded, errors = _round(part, _tiles(rounder, places), _chosen(corners, first, len(places)))
        for n, (place, whole) in enumerate(zip(places, goals, strict=True)):
            values[place], column_errors[place] = rounded[:, n].T, errors[:, n].T
            row_errors[place] = whiten[place[0].start // rows] @ (whole - values[place])
    return values[: tiling.out, : tiling.size]


def _round(part: Tensor, rounder: SliceRounder, corners: Tensor) -> tuple[Tensor, Tensor]:
    """GPTQ's recursion over the columns of several tiles ``[columns, tiles, rows]``: the values and the pushed errors."""
    values, errors = torch.empty_like(part), torch.empty_like(part)
    for i in range(len(part)):
        values[i] = rounder(part[i], i)
        error = torch.sub(part[i], values[i], out=errors[i]).div_(corners[i, i])
        part[i + 1 :].addcmul_(corners[i, i + 1 :], error, value=-1)
    return values, errors


def descend_both(
    target: Tensor,
    theta: Tensor,
    rounder: ElementRounder,
    left: Tensor,
    right: Tensor,
    rows: int,
    columns: int,
) -> Tensor:
    """``theta`` ``[out, in]`` after one round of coordinate descent on ``tr(L (T − Θ) R (T − Θ)ᵀ)``.

    The rows of a tile move together: with all else fixed their loss is at most ``Σ_i d_i (a_i − θ_i) R (a_i − θ_i)ᵀ`` plus a
    constant, with ``d_i = Σ_k |L_ik|`` over these rows and ``a_i = θ_i + (L Δ)_i / d_i``. Tiles of one diagonal move at once
    though they are coupled weakly through both sides, so that the loss can rise: callers compare it.

    Args:
        target: T, fp32 ``[out, in]``.
        theta: Θ, fp32 ``[out, in]``, allowed values.
        rounder: of the elements ``[out, in]``.
        left: L ``[out, out]``.
        right: R ``[in, in]``.
        rows: of a tile.
        columns: of a tile.
    """
    tiling = Tiling(target.shape[0], target.shape[1], rows, min(columns, target.shape[1]))
    rounder = rounder.arranged(tiling.pad)
    left, right = tiling.pad_left(left, 0.0), tiling.pad_right(right, 0.0)
    values = tiling.pad(theta)
    moved = (tiling.pad(target) - values) @ right
    bounds = _corners(left, rows).abs().sum(2).view(-1, 1)
    inverse = torch.where(bounds > 0, 1 / bounds, 0.0)
    corners = _corners(right, tiling.columns)
    for first, places in tiling.waves():
        gradient = _stacked([(left[r] @ moved[:, c]).mul_(inverse[r]) for r, c in places])
        before = _stacked([values[place] for place in places])
        steps = _descend(before, gradient, _tiles(rounder, places), _chosen(corners, first, len(places)))
        for n, (r, c) in enumerate(places):
            step = steps[:, n].T
            values[r, c] += step
            moved[r].addmm_(step, right[c], alpha=-1)
    return values[: tiling.out, : tiling.size]


def _descend(values: Tensor, gradient: Tensor, rounder: SliceRounder, corners: Tensor) -> Tensor:
    """Changes of the values of several tiles ``[columns, tiles, rows]``, column after column."""
    steps = torch.empty_like(values)
    for i in range(len(values)):
        curvature = corners[i, i]
        free = torch.where(curvature > 0, gradient[i] / curvature, 0.0).add_(values[i])
        torch.sub(rounder(free, i), values[i], out=steps[i])
        gradient[i + 1 :].addcmul_(corners[i, i + 1 :], steps[i], value=-1)
    return steps


def _tiles(rounder: ElementRounder, places: Sequence[Place]) -> SliceRounder:
    """Rounding of one column of several tiles at a time, ``[tiles, rows]``."""
    return rounder.arranged(lambda matrix: _stacked([matrix[place] for place in places])).slices()


def _stacked(tiles: Sequence[Tensor]) -> Tensor:
    """``[columns, tiles, rows]``, in which a column of all tiles is contiguous in memory."""
    return torch.stack([tile.T for tile in tiles], 1)


def _corners(matrix: Tensor, size: int) -> Tensor:
    """The square blocks on the diagonal, ``[n / size, size, size]``."""
    return torch.stack([matrix[i : i + size, i : i + size] for i in range(0, len(matrix), size)])


def _chosen(corners: Tensor, first: int, count: int) -> Tensor:
    """The square blocks of ``count`` tiles, ``[columns, columns, tiles, 1]``."""
    return corners[first : first + count].permute(1, 2, 0).contiguous().unsqueeze(-1)


def _grown(matrix: Tensor, by: int, corner: float) -> Tensor:
    whole = F.pad(matrix, (0, by, 0, by)).contiguous()
    whole.diagonal()[len(matrix) :] = corner
    return whole
