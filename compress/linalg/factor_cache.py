"""Factor cache: factorisations of a Gram matrix, shared by the weights that read the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass
class FactorCache:
    """The factorisations of one matrix at a time.

    Whoever solves the weights of a stage owns one, and clears it before a weight that reads other inputs: the factors of
    all inputs of a block together take more memory than the block. A matrix is recognised by its values, so that copies
    of it (read back from a file, or made by a score) count as the same. A different matrix replaces the factorisations of
    the one before.

    Only factors of the right side of a metric belong here. A left side is that of one weight alone.
    """

    _matrix: Tensor | None = None
    _factors: dict[Hashable, Any] = field(default_factory=dict)

    def get(self, matrix: Tensor, factorisation: Hashable, compute: Callable[[], T]) -> T:
        """The ``factorisation`` (its name and options) of ``matrix``, from ``compute`` where it is not held yet.

        Args:
            matrix: symmetric ``[n, n]``, or the diagonal ``[n]`` of a diagonal matrix; not to be written to afterwards.
            factorisation: what is computed; different options are different keys.
            compute: computes it.
        """
        if self._matrix is None or not _same(self._matrix, matrix):
            self.clear()
            self._matrix = matrix
        if factorisation not in self._factors:
            self._factors[factorisation] = compute()
        factor: T = self._factors[factorisation]
        return factor

    def clear(self) -> None:
        """Free the matrix and its factorisations."""
        self._matrix = None
        self._factors.clear()


def _same(first: Tensor, second: Tensor) -> bool:
    if first is second:
        return True
    alike = first.shape == second.shape and first.device == second.device and first.dtype == second.dtype
    return alike and torch.equal(first, second)
