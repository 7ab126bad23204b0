"""What the first of several ranks holds of the others' work: sums that it is sent, and weights that they have solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.models.views import WeightView
from compress.planning.model_sizes import numel
from compress.planning.parts import moment_bytes

_SENT = 64 << 20
"""Bytes of hidden states that are sent to a rank at once, at most."""
_SOLVED = 2
"""Copies in fp32 of a weight that was dealt out: as it was, and as it was solved; both stay until the stage is written."""


def sent_sums(
    views: Sequence[WeightView], needs: Mapping[str, frozenset[str]], activations: int, processes: int
) -> int:
    """Bytes of the largest sum of another rank, or of hidden states that go to it, whichever is more.

    ``activations``: bytes of all hidden states.
    """
    if processes == 1:
        return 0
    largest = max((sum(moment_bytes(need, view) for need in needs[view.name]) for view in views), default=0)
    return max(largest, min(_SENT, activations // processes))


def dealt_solutions(views: Sequence[WeightView], solver: int, processes: int) -> int:
    """Bytes while weights are solved: ``solver`` beside those that this rank has solved, then those of all ranks."""
    if processes == 1:
        return solver
    solved = 4 * _SOLVED * sum(map(numel, views))
    return max(solver + solved // processes, solved)
