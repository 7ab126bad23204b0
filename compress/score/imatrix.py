"""Importance matrix: an error costs by the mean squares of its inputs, as another program has measured them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.score.metric import Kron, Metric, Side
from compress.score.statistics import Statistics


@dataclass(frozen=True)
class Imatrix:
    """``R = diag(E[x_j²])`` ``[in]`` from an importance matrix of llama.cpp.

    The metric is that of :class:`~compress.score.activation.ActivationDiagonal`; no calibration data is looked at for it. The
    file is read when the recipe is planned (:mod:`compress.planning.imatrix`).

    Attributes:
        file: the importance matrix, GGUF or the older binary form.
    """

    file: str = ""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.file:
            raise ValueError("give the 'file', an importance matrix of llama.cpp: {name: imatrix, file: …}")

    def metric(self, statistics: Statistics) -> Metric:
        """``R`` is what the file says of the inputs, fp32 ``[in]``."""
        if statistics.importance is None:
            raise ValueError("the score imatrix needs what its file says of the weight")
        return Kron(right=Side(statistics.importance))
