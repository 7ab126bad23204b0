"""The one-to-one matching of rows that are most alike (an assignment problem, solved by scipy)."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from compress.errors import UserError


def check_matching() -> None:
    """Refuse, before any work, what cannot be matched for lack of scipy.

    Raises:
        UserError: scipy is not installed.
    """
    if find_spec("scipy") is None:
        raise UserError(
            "merging experts matches their neurons with scipy, which is not installed: pip install 'compress-llm[merge]'"
        )


def matched(first: Tensor, second: Tensor) -> Tensor:
    """The order of the rows of ``second`` in which they go best with those of ``first``.

    It maximises ``Σ_i ⟨first_i, second_π(i)⟩``, the assignment problem of weight matching in Git Re-Basin (arXiv:2209.04836)
    for one layer.

    Args:
        first, second: ``[n, features]``.

    Returns:
        π, int64 ``[n]``.

    Raises:
        UserError: scipy is not installed.
    """
    check_matching()
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 (optional)

    _, order = linear_sum_assignment((first.float() @ second.float().T).cpu().numpy(), maximize=True)
    return torch.from_numpy(order).to(torch.int64)
